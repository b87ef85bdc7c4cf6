"""Atomic writing of files: a reader sees the whole file or none."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

from bags_jax.errors import UserError


@contextlib.contextmanager
def replace_atomic(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, which replaces `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` stays as it was. A missing folder is made. The
    temporary path has the suffix of `path`, because some writers choose the format by it.

    Raises:
      UserError: the path cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.unfinished{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): expected a folder that can be written; choose another"
        ) from error
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
