"""What every room stands on: errors, files, digests, settings, the terminal. Imports nothing of ours, no torch."""
