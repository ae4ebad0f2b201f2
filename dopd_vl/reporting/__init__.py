"""What a run looked like, for a person to read."""
