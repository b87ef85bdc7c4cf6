"""Parses lists of image sizes and of counts on the command line."""

from absl import flags

from bags_jax.errors import UserError


def parse_sizes(flag: flags.FlagHolder) -> list[tuple[int, int]]:
    """Parses WIDTHxHEIGHT, px, of each entry.

    Raises:
      UserError: an entry has another form.
    """
    return [_parse_size(flag.name, text) for text in flag.value]


def parse_counts(flag: flags.FlagHolder) -> list[int]:
    """Parses whole numbers of at least 1.

    Raises:
      UserError: an entry has another form.
    """
    for text in flag.value:
        if not text.isdigit() or int(text) < 1:
            raise UserError(f"--{flag.name} has {text!r}, expected whole numbers of at least 1, separated by commas")
    return [int(text) for text in flag.value]


def _parse_size(name: str, text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"--{name} has {text!r}, expected WIDTHxHEIGHT in px, separated by commas")
    return int(width), int(height)
