"""Sizes and numbers that are lists on the command line."""

from absl import flags

from bags_jax.errors import UserError


def sizes(flag: flags.FlagHolder) -> list[tuple[int, int]]:
    """WIDTHxHEIGHT, several of them.

    Raises:
      UserError: something else came.
    """
    return [_size(flag.name, text) for text in flag.value]


def counts(flag: flags.FlagHolder) -> list[int]:
    """Numbers of at least 1.

    Raises:
      UserError: something else came.
    """
    for text in flag.value:
        if not text.isdigit() or int(text) < 1:
            raise UserError(f"--{flag.name} has {text!r}, expected whole numbers of at least 1, separated by commas")
    return [int(text) for text in flag.value]


def _size(name: str, text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"--{name} has {text!r}, expected WIDTHxHEIGHT in px, several separated by commas")
    return int(width), int(height)
