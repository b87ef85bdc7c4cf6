"""Sizes and numbers that are lists on the command line, and the file that rows go to."""

import json
import pathlib
from collections.abc import Callable

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


def row_writer(flag: flags.FlagHolder) -> Callable[[dict], None]:
    """A function that appends a row, as a line of JSON, to a flag's file; one that does nothing where there is none.

    Raises:
      UserError: the file cannot be written; said before anything is measured.
    """
    if not flag.value:
        return lambda row: None
    path = pathlib.Path(flag.value).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"--{flag.name}={flag.value} cannot be written: {error.strerror}") from error

    def write(row: dict) -> None:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    return write


def _size(name: str, text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"--{name} has {text!r}, expected WIDTHxHEIGHT in px, several separated by commas")
    return int(width), int(height)
