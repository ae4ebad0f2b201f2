"""The trainer, its configuration, and what a run leaves behind."""
