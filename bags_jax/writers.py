"""Training logs: TensorBoard and JSON lines (metrics.jsonl)."""

import contextlib
import datetime
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from bags_jax.atomic import make_write_error, write_atomic
from bags_jax.errors import UserError


class Writers:
    """Context manager that appends scalars to both logs of a working directory, and pictures to TensorBoard.

    Every method raises UserError if the logs cannot be written, as on a full disk.

    Args:
      workdir: folder of the run.
      step: step at which training continues. The first write removes all entries of later steps, which an interrupted
        run left behind: training repeats those steps.
    """

    def __init__(self, workdir: pathlib.Path, step: int = 0):
        self._folder, self._step = pathlib.Path(workdir), step
        self._lines: IO[bytes] | None = None
        self._board: Any = None

    def __enter__(self):
        return self

    def __exit__(self, exc_type, *_):
        for file in (self._board, self._lines):
            try:
                with self._problems():
                    file and file.close()
            except ValueError:
                if exc_type is None:  # another exception matters more
                    raise

    def _open(self) -> None:
        """Opens both logs, unless they are open."""
        from tensorboardX.event_file_writer import EventsWriter

        if self._lines is not None:
            return
        path, board = self._folder / "metrics.jsonl", self._folder / "tensorboard"
        if os.path.lexists(path) and not path.is_file():  # opening a pipe would wait without end
            raise UserError(f"{path} is no file: move it away")
        if path.is_file():
            lines = path.read_bytes().splitlines(keepends=True)
            write_atomic(path, b"".join(line for line in lines if _is_until(line, self._step)))
        board.mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies on a full disk, and the queue to it blocks training.
        self._board = EventsWriter(str(board / "events"), f".{os.getpid()}")
        begins = {"status": "START"}  # TensorBoard drops what earlier files say of these steps
        self._board.write_event(_make_event(step=self._step + 1, session_log=begins))
        self._lines = path.open("ab", buffering=0)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one line of JSON, and one point per scalar in TensorBoard."""
        from tensorboardX.summary import scalar

        with self._problems():
            self._open()
            assert self._lines is not None
            line = (json.dumps({"step": step, **scalars}) + "\n").encode()
            if self._lines.write(line) != len(line):  # the disk took a part of it
                self._lines.write(line)  # raises
            self._write_events(step, [scalar(name, value) for name, value in scalars.items()])

    def draw(self, step: int, pictures: dict[str, UInt8[np.ndarray, "_H _W 3"]]) -> None:
        """Adds pictures to TensorBoard."""
        from tensorboardX.summary import image

        with self._problems():
            self._open()
            self._write_events(step, [image(name, x, dataformats="HWC") for name, x in pictures.items()])

    def _write_events(self, step: int, summaries: list[Any]) -> None:
        for summary in summaries:
            self._board.write_event(_make_event(step=step, summary=summary))
        self._board.flush()

    @contextlib.contextmanager
    def _problems(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise make_write_error(error.filename or self._folder, error) from error


def _make_event(**fields: Any) -> Any:
    """An event of TensorBoard, of now."""
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2  # made at run time
    return messages.Event(wall_time=datetime.datetime.now().timestamp(), **fields)


def _is_until(line: bytes, step: int) -> bool:
    """True if a line of the log is complete and its step is at most `step`."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # not JSON, no step, not an object
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    return False
