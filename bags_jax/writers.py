"""Training logs: TensorBoard for people, JSON lines for programs."""

import json
import pathlib

import tensorboardX


class Writers:
    """Writes scalars of a step to both logs of a working directory; a context that closes them."""

    def __init__(self, workdir: pathlib.Path):
        self._lines = open(pathlib.Path(workdir) / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._board = tensorboardX.SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"))

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
