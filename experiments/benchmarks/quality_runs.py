"""The runs of the quality benchmark: what there is to do, what is done, and the processes that do it."""

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

from bags_jax.errors import UserError
from bags_jax.workdir import CONFIG_FILE, holds_run
from experiments.benchmarks.suites import Case, make_config, source

ROW_FILE = "row.json"  # written last: a run that has it is done
POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Run:
    """One training with its evaluation."""

    case: Case
    method: str
    seed: int
    folder: pathlib.Path
    config: Any

    @property
    def name(self) -> str:
        return f"{self.case.name}/{self.method}/{self.seed}"

    def row(self) -> dict | None:
        """What the run found; None: it is not done.

        Raises:
          UserError: the file is damaged.
        """
        path = self.folder / ROW_FILE
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it, and the run is scored again") from error

    def status(self) -> str:
        """done, begun, or to do.

        Raises:
          UserError: the folder holds a run of another configuration: figures of two must not share a table.
        """
        begun = holds_run(self.folder, self.config)
        return ("done" if (self.folder / ROW_FILE).exists() else "begun") if begun else "to do"


def make_run(workdir: pathlib.Path, case: Case, method: str, seed: int, **settings) -> Run:
    """The run that gives one figure of the table; settings as in suites.make_config. Oracles are shared: suites.source."""
    case, method = source(case, method)
    config = make_config(case, method, seed, **settings)
    return Run(case, method, seed, workdir / "runs" / case.name / method / str(seed), config)


def list_runs(
    workdir: pathlib.Path, cases: Sequence[Case], methods: Sequence[str], seeds: Sequence[int], **settings
) -> dict[tuple[str, str, int], Run]:
    """The run of every case, method and seed; one seed after the other, so that a whole table is there early."""
    return {
        (case.name, method, seed): make_run(workdir, case, method, seed, **settings)
        for seed in seeds
        for case in cases
        for method in methods
    }


def distinct(runs: dict[tuple[str, str, int], Run]) -> list[Run]:
    """Each run once, though an oracle serves several cases."""
    return list({run.folder: run for run in runs.values()}.values())


def core_groups(jobs: int) -> list[list[int]]:
    """The cores of each of so many processes at once; more processes than cores share them; []: no pinning here."""
    if not hasattr(os, "sched_getaffinity"):
        return [[]] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i::jobs] or [cores[i % len(cores)]] for i in range(jobs)]


@contextlib.contextmanager
def _pinned(cores: list[int]) -> Iterator[None]:
    """Processes that are started in the block inherit these cores."""
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
def _orderly_end() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that no process of ours is left behind."""

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


def work_off(
    runs: Sequence[Run],
    *,
    arguments: Callable[[Run], list[str]],
    jobs: int,
    finished: Callable[[Run, float, bool], None],
) -> list[Run]:
    """Does runs, each in a process of its own that frees all its memory and compiled programs, `jobs` at a time.

    Args:
      runs: those to do or to go on with.
      arguments: the command line of a run.
      jobs: processes at once, each pinned to its share of the cores where the system can.
      finished: is told of each run that ended, its seconds, and whether it is done.
    Returns:
      The runs that failed; each has its whole output in log.txt.
    """
    waiting, groups = collections.deque(runs), core_groups(jobs)
    workers: dict[int, _Worker] = {}
    failed = []
    with _orderly_end():
        try:
            while waiting or workers:
                for slot in [s for s in range(jobs) if s not in workers][: len(waiting)]:
                    run = waiting.popleft()
                    workers[slot] = _Worker(run, _start(run, arguments(run), groups[slot], jobs), time.monotonic())
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
    if jobs > 1:  # else the first process takes three quarters of a GPU's memory for itself
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / "log.txt").open("ab") as log, _pinned(cores):
            return subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
    except OSError as error:
        raise UserError(f"--workdir: {run.folder} cannot be written ({error}): choose a folder that can") from error


def last_line(run: Run) -> str:
    """The end of what a run said."""
    try:
        lines = [
            line.split("\r")[-1].strip() for line in (run.folder / "log.txt").read_text(errors="replace").split("\n")
        ]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "")


def past_seconds(folder: pathlib.Path, starts: Sequence[float]) -> float:
    """Time of earlier sessions of a run that was cut off: from each start to its last checkpoint, from where it went on.

    Args:
      folder: of the run.
      starts: when each session began, s since the epoch; the last is the one that is on now.
    """
    saves = sorted(p.stat().st_mtime for p in (folder / "checkpoints").glob("*") if p.name.isdigit())
    total = 0.0
    for start, end in itertools.pairwise(starts):
        total += max([0.0, *(save - start for save in saves if save < end)])
    return total


def is_begun(folder: pathlib.Path) -> bool:
    """Whether a training was begun here."""
    return (folder / CONFIG_FILE).exists()
