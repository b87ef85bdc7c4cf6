"""Spool: arrays in a temporary file in place of memory, for captures that are larger than the memory of the machine.

The arrays are ordinary NumPy arrays that map the file: the system reads their pages when they are used and drops them when
memory is needed. The file has no name, so that nothing is left behind, however the process ends.
"""

import mmap
import os
import pathlib
import tempfile
import threading
from typing import Any

import numpy as np
from jaxtyping import Shaped

from bags_jax.errors import UserError


class Spool:
    """A temporary file that holds arrays."""

    def __init__(self, folder: pathlib.Path):
        """Opens the file in a folder, which is made if it is not there.

        Raises:
          UserError: the folder cannot be written.
        """
        self._folder, self._size, self._lock = folder, 0, threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (as long as the spool)
        except OSError as error:
            raise self._make_error(error) from error

    def keep(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Writes an array to the file and returns it as a read-only map of the file."""
        size = array.nbytes
        if not size:
            return array
        with self._lock:
            start = self._size
            self._size += -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            # Reserves the space: a disk that is full would otherwise end the process when a page is written.
            os.posix_fallocate(self._file.fileno(), start, size)
        except AttributeError:  # macOS
            self._file.truncate(start + size)
        except OSError as error:
            raise self._make_error(error) from error
        pages = mmap.mmap(self._file.fileno(), size, offset=start)
        found = np.frombuffer(pages, array.dtype, count=array.size).reshape(array.shape)
        found[...] = array
        found.flags.writeable = False
        return found

    def _make_error(self, error: OSError) -> UserError:
        return UserError(
            f"the photographs do not fit into memory, and {self._folder} cannot hold them ({error.strerror or error}): make space "
            "there, set XDG_CACHE_HOME to a larger disk, or raise config.data.factor"
        )
