"""The pretrained world: SmolLM2-135M-Instruct taught two sources' questions, and a smaller model made from it."""
