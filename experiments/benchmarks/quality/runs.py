"""The runs of the quality benchmark: their folders and status, and the tasks that train and score them."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from bags_jax.config import read_config
from bags_jax.errors import UserError
from bags_jax.sweep import LOG_FILE, run_python, stop_and_queue, take_cores
from bags_jax.workdir import CONFIG_FILE, holds_run
from experiments.benchmarks.quality.suites import Case, make_config, trained_as

ROW_FILE = "row.json"  # written last: marks a finished run


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    case: Case
    method: str
    seed: int
    folder: pathlib.Path
    config: Any

    @property
    def name(self) -> str:
        return f"{self.case.name}/{self.method}/{self.seed}"

    def row(self) -> dict | None:
        """The row of a finished run; None: not finished.

        Raises:
          UserError: the file is damaged.
        """
        path = self.folder / ROW_FILE
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it to score the run again") from error

    def status(self) -> str:
        """Returns "done", "begun" or "to do".

        Raises:
          UserError: the folder holds a run of another configuration; one table must not mix configurations.
        """
        begun = holds_run(self.folder, read_config(self.config))
        return ("done" if (self.folder / ROW_FILE).exists() else "begun") if begun else "to do"


def make_run(workdir: pathlib.Path, case: Case, method: str, seed: int, **settings) -> Run:
    """Makes the run that one figure of the table comes from. Several cases share one oracle run: suites.trained_as.

    settings: see suites.make_config.
    """
    case, method = trained_as(case, method)
    config = make_config(case, method, seed, **settings)
    return Run(case, method, seed, workdir / "runs" / case.name / method / str(seed), config)


def list_runs(
    workdir: pathlib.Path, cases: Sequence[Case], methods: Sequence[str], seeds: Sequence[int], **settings
) -> dict[tuple[str, str, int], Run]:
    """Makes the run of every case, method and seed. Seed by seed: the table of the first seed is complete early."""
    return {
        (case.name, method, seed): make_run(workdir, case, method, seed, **settings)
        for seed in seeds
        for case in cases
        for method in methods
    }


def distinct(runs: dict[tuple[str, str, int], Run]) -> list[Run]:
    """Removes duplicates: several cases share one oracle run."""
    return list({run.folder: run for run in runs.values()}.values())


@dataclasses.dataclass(frozen=True)
class Task:
    """A run as a task of the executors of `bags-jax sweep`. A process of its own: its end frees memory and programs."""

    name: str
    folder: str
    command: tuple[str, ...]  # arguments of Python

    def __call__(self, cores: Sequence[int] = ()) -> str:
        """Trains and scores. Returns the last line of the log if that failed, else ""."""
        folder = pathlib.Path(self.folder)
        take_cores(cores)
        code = run_python(self.command, folder / LOG_FILE, mode="ab")
        is_done = code == 0 and (folder / ROW_FILE).is_file()
        return "" if is_done else last_line(folder) or f"its process ended with exit code {code}"

    def checkpoint(self, *arguments: Any) -> Any:
        """See sweep.stop_and_queue."""
        return stop_and_queue(self, *arguments)


def last_line(folder: pathlib.Path) -> str:
    """Last line that the run of a folder printed."""
    try:
        text = (folder / LOG_FILE).read_text(errors="replace")
    except OSError:
        return ""
    lines = [line.split("\r")[-1].strip() for line in text.split("\n")]
    return next((line for line in reversed(lines) if line), "")


def past_seconds(folder: pathlib.Path, starts: Sequence[float]) -> float:
    """Training time of the earlier, interrupted sessions of a run, each from its start to its last checkpoint.

    Args:
      folder: of the run.
      starts: start of each session, s since the epoch; the last one is the current session.
    """
    saves = sorted(p.stat().st_mtime for p in (folder / "checkpoints").glob("*") if p.name.isdigit())
    total = 0.0
    for start, end in itertools.pairwise(starts):
        total += max([0.0, *(save - start for save in saves if save < end)])
    return total


def is_begun(folder: pathlib.Path) -> bool:
    """True if a training has started in this folder."""
    return (folder / CONFIG_FILE).exists()
