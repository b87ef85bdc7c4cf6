"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

from bags_jax.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A name to write to, which becomes `path` when the block ends well and is removed when it does not.

    The folder is made where it is missing; the suffix is kept, for writers that go by it.

    Raises:
      UserError: the path cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.unfinished{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): choose a folder that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
      UserError: the path cannot be written.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(data)
