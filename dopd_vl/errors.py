"""Errors that a user's settings or data can cause: one line that says what was wrong, where, and what to do."""


class UserError(ValueError):
    """Shown by the command line as one line, without a traceback, with exit code 2."""


class ConfigurationError(UserError):
    """A setting is wrong; the message names its key and the file or option it came from."""
