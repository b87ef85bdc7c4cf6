"""Shared libraries that are compiled once and kept in a folder of the user: built under a lock, loaded only if they are his own."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from bags_jax.errors import UserError

DRAFT = ".building_"
# The shell outlives a killed Python: it finishes the library or removes what was begun, and keeps the lock that long.
SCRIPT = """
draft=$1 library=$2
shift 2
PATH=$PATH:/usr/bin:/bin
trap 'rm -rf "$draft"' EXIT
trap 'exit 143' HUP INT PIPE TERM
TMPDIR=$draft "$@" -o "$draft/library.so" || exit 1
chmod 755 "$draft/library.so"
sync "$draft/library.so" 2>/dev/null
mv -f "$draft/library.so" "$library"
"""


def is_built(library: pathlib.Path) -> bool:
    """Returns whether a library is there and may be loaded: folder and file belong to the user, and nobody else may write them.

    A folder of the user that others may write is closed to them, and its library counts as missing: it is built again.

    Raises:
      UserError: the folder belongs to somebody else.
    """
    folder = library.parent
    if not folder.is_dir():
        return False
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise UserError(
            f"the cache {folder} belongs to another user (uid {status.st_uid}): set XDG_CACHE_HOME to a folder of your own"
        )
    if status.st_mode & 0o022:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~0o022)
        library.unlink(missing_ok=True)
    try:
        status = library.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def build_library(library: pathlib.Path, command: Sequence[str], *, timeout_s: float) -> str:
    """Runs a compiler, unless another process has built the library meanwhile. Returns its errors, or "".

    One process builds at a time. What killed processes left is removed. The library gets its name when it is complete.

    Args:
      library: the file to make.
      command: the compiler and its arguments, without -o.
      timeout_s: limit of the compiler.
    Raises:
      OSError: the folder cannot be written.
      subprocess.TimeoutExpired: the compiler took too long.
      UserError: the folder belongs to somebody else.
    """
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(library.parent) as handles:
        if is_built(library):
            return ""
        for leftover in library.parent.glob(f"{DRAFT}*") if handles else ():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        draft = tempfile.mkdtemp(prefix=DRAFT, dir=library.parent)
        script = ["/bin/sh", "-c", SCRIPT, "sh", draft, str(library), *command]
        process = subprocess.Popen(
            script,
            pass_fds=handles,
            start_new_session=True,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            errors = process.communicate(timeout=timeout_s)[1]
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # the compiler and the shell, which removes the draft
            process.communicate()
            raise
        if process.returncode and not errors.strip():
            return f"exit code {process.returncode}"
        return errors if process.returncode else ""


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[tuple[int, ...]]:
    """Locks a folder for the block; yields the descriptor that holds the lock, or () on file systems without locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # NFS locks no folders: two processes may build at the same time, each under a name of its own
            yield ()
        else:
            yield (handle,)
    finally:
        os.close(handle)
