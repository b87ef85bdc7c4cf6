"""Where a figure comes from: what every row of a benchmark says beside it."""

import os
import pathlib
import subprocess

import jax


def commit() -> str:
    """The commit of this code, with `-dirty` where files differ from it; BAGS_COMMIT says it where there is no git."""
    folder = pathlib.Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=9"]
    try:
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        said = ""
    return said or os.environ.get("BAGS_COMMIT", "") or "unknown"


def provenance() -> dict[str, str]:
    """Commit, device and version of JAX."""
    return {"commit": commit(), "device": jax.devices()[0].device_kind, "jax": jax.__version__}
