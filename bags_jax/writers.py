"""Training logs: TensorBoard and JSON lines (metrics.jsonl)."""

import contextlib
import json
import pathlib
from typing import IO

import numpy as np
from jaxtyping import UInt8

from bags_jax.atomic import write_atomic


class Writers:
    """Context manager that appends scalars to both logs of a working directory, and pictures to TensorBoard.

    Args:
      workdir: folder of the run.
      step: step at which training continues. The first write removes all entries of later steps, which an interrupted
        run left behind: training repeats those steps.
    """

    def __init__(self, workdir: pathlib.Path, step: int = 0):
        self._folder, self._step = pathlib.Path(workdir), step
        self._files = contextlib.ExitStack()
        self._lines: IO[str] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._files.close()

    def _open(self) -> IO[str]:
        import tensorboardX

        path = self._folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            write_atomic(path, b"".join(line for line in lines if _is_until(line, self._step)))
        board = tensorboardX.SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._step + 1)
        self._board = self._files.enter_context(contextlib.closing(board))
        return self._files.enter_context(open(path, "a", encoding="utf-8"))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one line of JSON, and one point per scalar in TensorBoard."""
        self._lines = self._lines or self._open()
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def draw(self, step: int, pictures: dict[str, UInt8[np.ndarray, "_H _W 3"]]) -> None:
        """Adds pictures to TensorBoard."""
        self._lines = self._lines or self._open()
        for name, picture in pictures.items():
            self._board.add_image(name, picture, step, dataformats="HWC")


def _is_until(line: bytes, step: int) -> bool:
    """True if a line of the log is complete and its step is at most `step`."""
    with contextlib.suppress(ValueError, KeyError, TypeError):  # not JSON, no step, not an object
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    return False
