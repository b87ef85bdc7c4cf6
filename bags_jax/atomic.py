"""Atomic writing of files: a reader sees the whole file or none, also after a loss of power."""

import contextlib
import errno
import os
import pathlib
import uuid
from collections.abc import Iterator

from bags_jax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota or largest size of a file reached


@contextlib.contextmanager
def replace_atomic(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, which replaces `path` at the end of the block.

    The bytes are on the disk before the file has its name. If the block raises, the temporary file is removed and `path`
    stays as it was. A missing folder is made. The temporary path has the suffix of `path`, because some writers choose
    the format by it.

    Raises:
      UserError: the path cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.unfinished{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise make_write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
      UserError: the path cannot be written.
    """
    with replace_atomic(path) as temporary:
        temporary.write_bytes(data)


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or the list of names of a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: str | os.PathLike) -> None:
    """Waits until all files and folders below a folder, and the folder itself, are on the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(os.path.join(parent, name))
        sync(parent)


def make_write_error(path: str | os.PathLike, error: OSError) -> UserError:
    """The error of a user whose file cannot be written: a full disk needs another advice than a forbidden folder."""
    advice = "expected a folder that can be written; choose another"
    if error.errno in FULL:
        advice = "free space on the disk and repeat the command"
    return UserError(f"cannot write {path} ({error.strerror or error}): {advice}")
