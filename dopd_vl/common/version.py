"""The version, once: packaging, the command line and model cards read it here, installed or from a checkout."""

__version__ = "0.1.0"
