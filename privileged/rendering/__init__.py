"""What a policy is shown: variants of the privileged input, as messages and pictures."""
