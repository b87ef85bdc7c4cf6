"""The exception for mistakes that a user can mend."""


class UserError(ValueError):
    """Bad input: a file, a folder, a config value or an array that cannot be used.

    The message is one line: what came, what was expected, how to mend it. The programs print it without a traceback and
    exit with code 2. Library callers may catch it as a ValueError.
    """
