"""Where what can be made again is kept: scenes, compiled programs, built libraries."""

import os
import pathlib


def cache_home() -> pathlib.Path:
    """$XDG_CACHE_HOME/bags_jax, or ~/.cache/bags_jax where that is not set (or no absolute path).

    Raises:
      RuntimeError: there is no home folder either.
    """
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return (pathlib.Path(folder) if os.path.isabs(folder) else pathlib.Path.home() / ".cache") / "bags_jax"
