"""Verifiers, accuracy, and scoring of a model on a privileged data set."""
