"""The runs of the quality benchmark: their folders and status, and the processes that train and score them."""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bags_jax.config import read_config
from bags_jax.errors import UserError
from bags_jax.workdir import CONFIG_FILE, holds_run
from experiments.benchmarks.quality.suites import Case, make_config, trained_as

ROW_FILE = "row.json"  # written last: marks a finished run
POLL_SECONDS = 0.2


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


def split_cores(jobs: int) -> list[list[int]]:
    """Splits the cores between `jobs` processes. More jobs than cores share cores. []: this system cannot pin."""
    if not hasattr(os, "sched_getaffinity"):
        return [[]] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i::jobs] or [cores[i % len(cores)]] for i in range(jobs)]


@contextlib.contextmanager
def _pin(cores: list[int]) -> Iterator[None]:
    """Pins processes that start in the block to these cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, as Ctrl-C does, so that all child processes are stopped."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclasses.dataclass
class _Worker:
    run: Run
    process: subprocess.Popen
    started: float


def run_all(
    runs: Sequence[Run],
    *,
    make_command: Callable[[Run], list[str]],
    jobs: int,
    finished: Callable[[Run, float, bool], None],
) -> list[Run]:
    """Runs `jobs` processes at a time, one process per run: its end frees all memory and compiled programs.

    Args:
      runs: unfinished runs.
      make_command: returns the arguments of Python for a run.
      jobs: number of processes, each pinned to its share of the cores if the system supports this.
      finished: called with (run, seconds, True if the run is done) at the end of each process.
    Returns:
      The failed runs; log.txt in a run's folder has its output.
    """
    waiting, groups = collections.deque(runs), split_cores(jobs)
    workers: dict[int, _Worker] = {}
    failed = []
    with _interrupt_on_sigterm():
        try:
            while waiting or workers:
                for slot in [s for s in range(jobs) if s not in workers][: len(waiting)]:
                    run = waiting.popleft()
                    workers[slot] = _Worker(run, _start(run, make_command(run), groups[slot], jobs), time.monotonic())
                time.sleep(POLL_SECONDS)
                for slot in [s for s, w in workers.items() if w.process.poll() is not None]:
                    worker = workers.pop(slot)
                    is_done = worker.process.returncode == 0 and worker.run.row() is not None
                    failed += [] if is_done else [worker.run]
                    finished(worker.run, time.monotonic() - worker.started, is_done)
        finally:
            for worker in workers.values():
                worker.process.terminate()
            for worker in workers.values():
                worker.process.wait()
    return failed


def _start(run: Run, command: list[str], cores: list[int], jobs: int) -> subprocess.Popen:
    environment = dict(os.environ)
    if jobs > 1:  # by default the first JAX process reserves three quarters of a GPU's memory
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / "log.txt").open("ab") as log, _pin(cores):
            return subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
    except OSError as error:
        raise UserError(f"--workdir: {run.folder} cannot be written ({error}): choose another folder") from error


def last_line(run: Run) -> str:
    """Last line that a run printed."""
    try:
        text = (run.folder / "log.txt").read_text(errors="replace")
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
