"""The lock of a working directory: one training at a time. The system releases it when its process ends, however that ends."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from bags_jax.atomic import make_write_error
from bags_jax.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def lock_workdir(workdir: str | pathlib.Path) -> Iterator[None]:
    """Holds the lock of a directory for the block. Makes the directory, and removes it again if the block leaves it empty.

    Raises:
      UserError: another process holds the lock, or the directory cannot be written.
    """
    path = pathlib.Path(workdir).expanduser()
    made = [folder for folder in (path, *path.parents) if not folder.exists()]  # innermost first
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = _take(path / LOCK_FILE)
    except OSError as error:
        _remove_empty(made)
        if error.errno == errno.ENOSPC:
            raise make_write_error(path, error) from error
        raise UserError(f"--workdir={path} cannot be written ({error.strerror}): choose a folder that can") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (path / LOCK_FILE).unlink()  # while it is locked: see _take
        os.close(handle)
        _remove_empty(made)


def _take(path: pathlib.Path) -> int:
    """Opens and locks the file, and writes into it who has it. Returns its descriptor."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, handle):  # else its last holder has removed the file since it was opened
                os.ftruncate(handle, 0)
                with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            raise UserError(
                f"--workdir={path.parent} is in use by another training ({holder or 'another process'}): wait until it is done, stop it, "
                "or choose another --workdir"
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(path: pathlib.Path, handle: int) -> bool:
    """True if an open file is still the one at a path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(handle))
    return False


def _remove_empty(folders: list[pathlib.Path]) -> None:
    with contextlib.suppress(OSError):  # not empty
        for folder in folders:
            folder.rmdir()
