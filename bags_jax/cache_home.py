"""The cache folder, for files that can be made again: scenes, compiled programs, built libraries."""

import os
import pathlib


def find_cache_home() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/bags_jax; ~/.cache/bags_jax if the variable is not set or is a relative path.

    Raises:
      RuntimeError: there is no home folder either.
    """
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return (pathlib.Path(folder) if os.path.isabs(folder) else pathlib.Path.home() / ".cache") / "bags_jax"
