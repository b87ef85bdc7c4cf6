"""JSON rows of the benchmarks: the file that they are appended to, and the commit, device and version in each row."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable

import jax
from absl import flags

from bags_jax.errors import UserError


def open_rows(flag: flags.FlagHolder) -> Callable[[dict], None]:
    """Returns a function that appends a row as a line of JSON to the flag's file, or does nothing if the flag is empty.

    Raises:
      UserError: the file cannot be written. Raised before anything is measured.
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


def find_commit() -> str:
    """The commit of this code, with `-dirty` if files differ from it. Without git: BAGS_COMMIT or "unknown"."""
    folder = pathlib.Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=9"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        found = ""
    return found or os.environ.get("BAGS_COMMIT", "") or "unknown"


def provenance() -> dict[str, str]:
    """Commit, device and version of JAX, for every row."""
    return {"commit": find_commit(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
