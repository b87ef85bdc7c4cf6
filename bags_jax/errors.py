"""The one exception for mistakes that a user can repair."""


class UserError(ValueError):
    """Bad input: a file, a folder, a config value or an array that cannot be used.

    The message is one line that says what came, what was expected and how to fix it. The programs in `experiments/`
    print it without a traceback and leave with exit code 2; library callers may catch it as a ValueError.
    """
