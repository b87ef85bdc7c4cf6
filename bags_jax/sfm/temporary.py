"""Temporary folders beside the files that they become, removed also after a process was killed."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def open_temporary(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a hidden folder in `root` for a block. First removes those of processes that do not run any more."""
    for left in root.glob(".sfm_*"):
        number = re.match(r"\.sfm_(\d+)_", left.name)
        if number and not _is_running(int(number[1])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".sfm_{os.getpid()}_", ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


def _is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, as another user
        return True
    return True
