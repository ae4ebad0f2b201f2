"""Before a run: whether it fits, what it will take, and what to change if it does not fit."""
