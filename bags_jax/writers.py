"""Training logs: TensorBoard for people, JSON lines for programs."""

import contextlib
import json
import pathlib
from typing import IO

import tensorboardX

from bags_jax.atomic import write_atomic


class Writers:
    """Writes scalars of a step to both logs of a working directory; a context that closes them.

    Args:
      workdir: the logs go on where they end.
      step: where training goes on. What is logged of later steps, by a run that was cut off, is dropped as soon as there is
        something to write: they are done again.
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
        path = self._folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            write_atomic(path, b"".join(line for line in lines if _is_until(line, self._step)))
        board = tensorboardX.SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._step + 1)
        self._board = self._files.enter_context(contextlib.closing(board))
        return self._files.enter_context(open(path, "a", encoding="utf-8"))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line of JSON, one point for each scalar in TensorBoard."""
        self._lines = self._lines or self._open()
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)


def _is_until(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to this one."""
    with contextlib.suppress(ValueError, KeyError, TypeError):  # no JSON, no step, no object
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    return False
