"""The exception for mistakes that a user can mend."""

import re
from typing import Any

MAX_SHOWN = 60  # characters of a value in a message
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def escape(text: str) -> str:
    """Escapes line breaks, control characters and bytes that are no UTF-8, which names of files may contain."""
    return _UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape", "surrogatepass").decode(), text)


def show(value: Any) -> str:
    """A value of a file in a message: one line, not too long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of more digits than Python prints, a list too deep
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


class UserError(ValueError):
    """Bad input: a file, a folder, a config value or an array that cannot be used.

    The message is one line: what came, what was expected, how to mend it. The programs print it without a traceback and
    exit with code 2. Library callers may catch it as a ValueError.
    """

    def __init__(self, message: str):
        super().__init__(escape(message))
