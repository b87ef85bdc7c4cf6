"""Training logs: TensorBoard for people, JSON lines for programs."""

import contextlib
import json
import pathlib

import tensorboardX

from bags_jax.atomic import write_atomic


class Writers:
    """Writes scalars of a step to both logs of a working directory; a context that closes them.

    Args:
      workdir: the logs go on where they end.
      step: where training goes on. What is logged of later steps, by a run that was cut off, is dropped: they are done again.
    """

    def __init__(self, workdir: pathlib.Path, step: int = 0):
        path = pathlib.Path(workdir) / "metrics.jsonl"
        if path.exists():
            write_atomic(
                path, b"".join(line for line in path.read_bytes().splitlines(keepends=True) if _is_until(line, step))
            )
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._board = tensorboardX.SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"), purge_step=step + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lines.close()
        self._board.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line of JSON, one point for each scalar in TensorBoard."""
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)


def _is_until(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to this one."""
    with contextlib.suppress(ValueError):
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    return False
