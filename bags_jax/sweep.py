"""A sweep: one training for every configuration, variant and seed, on this machine or a SLURM cluster.

submitit (the extra [sweep]) starts the tasks. Each is `bags-jax train` and then `bags-jax evaluate`, in processes of their own,
with a working directory of its own: the same sweep goes on where it stopped, and a task that fails stops no other.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from bags_jax.atomic import write_atomic
from bags_jax.config import shipped_configs
from bags_jax.errors import UserError
from bags_jax.platforms import count_cores
from bags_jax.report.tables import markdown_table

LOG_FILE, TABLE_FILE, JOBS_FILE = "log.txt", "sweep.csv", "jobs.json"
SCORES = ("PSNR", "SSIM", "LPIPS")  # of the protocol of Deblur-NeRF
PERIOD = 0.5  # seconds between two looks at the jobs

_child: subprocess.Popen | None = None  # the command that runs now, in the process of a task


@runtime_checkable
class Runnable(Protocol):
    """A task: what the executors of a sweep run. submitit sends it to its process by pickle."""

    @property
    def name(self) -> str:
        """Names the task among the others."""
        ...

    def __call__(self, cores: Sequence[int] = ()) -> str:
        """Runs the task on some CPU cores, (): all. Returns the line of the error, "" without one."""
        ...

    def checkpoint(self, *arguments: Any) -> Any:
        """Stops before the cluster takes the machine away; see stop_and_queue."""
        ...


T = TypeVar("T", bound=Runnable)


@dataclasses.dataclass(frozen=True)
class Task:
    """One training and its evaluation."""

    config: str  # as after --config=
    settings: tuple[str, ...]  # NAME=VALUE
    seed: int
    folder: str  # working directory

    @property
    def name(self) -> str:
        return pathlib.Path(self.folder).name

    def __call__(self, cores: Sequence[int] = ()) -> str:
        """Trains and scores. Returns the line of the error, "" without one.

        Args:
          cores: CPU cores to use; (): all.
        """
        take_cores(cores)
        settings = [f"--config.{setting}" for setting in (*self.settings, f"seed={self.seed}")]
        for command in (["train", f"--config={self.config}", *settings], ["evaluate"]):
            if command == ["evaluate"] and self.is_scored():
                continue
            line = ["-m", "bags_jax", *command, f"--workdir={self.folder}"]
            if code := run_python(line, pathlib.Path(self.folder) / LOG_FILE):
                return self.last_error() or f"bags-jax {command[0]} ended with exit code {code}"
        return ""

    def checkpoint(self, *arguments: Any) -> Any:
        """See stop_and_queue."""
        return stop_and_queue(self, *arguments)

    def is_scored(self) -> bool:
        """True if the last checkpoint has its scores."""
        results, checkpoints = pathlib.Path(self.folder) / "results.json", pathlib.Path(self.folder) / "checkpoints"
        steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]
        return results.is_file() and bool(steps) and self.scores().get("step") == max(steps)

    def scores(self) -> dict:
        """What the evaluation wrote; {}: nothing that can be read."""
        with contextlib.suppress(OSError, ValueError):
            found: Any = json.loads((pathlib.Path(self.folder) / "results.json").read_text())
            return found if isinstance(found, dict) else {}
        return {}

    def last_error(self) -> str:
        """The last line of the log that names an error; "" without one."""
        with contextlib.suppress(OSError):
            text = (pathlib.Path(self.folder) / LOG_FILE).read_text(errors="replace").replace("\r", "\n")
            errors = [line.partition("error: ")[2] for line in text.splitlines() if "error: " in line]
            return errors[-1] if errors else ""
        return ""


def take_cores(cores: Sequence[int]) -> None:
    """Keeps this process and its children on some CPU cores; (): on all."""
    if cores:
        os.sched_setaffinity(0, cores)


def stop_and_queue(task: Runnable, *arguments: Any) -> Any:
    """Stops the command of a task, which saves its state, before the cluster takes the machine away. submitit queues it again."""
    from submitit.helpers import DelayedSubmission

    _stop()
    return DelayedSubmission(task, *arguments)


def _stop() -> None:
    """Stops the command that runs, if any, and waits for its end."""
    if _child is not None and _child.returncode is None:
        _child.send_signal(signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):  # not _child.wait(): the code below a signal may be in it
            os.waitid(os.P_PID, _child.pid, os.WEXITED | os.WNOWAIT)


def run_python(arguments: Sequence[str], log: pathlib.Path, *, mode: str = "wb") -> int:
    """Runs Python with these arguments and its output in a log. Returns its exit code. An interruption stops it, too."""
    global _child
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}  # it runs alone
    with log.open(mode) as file, _ignore(signal.SIGUSR1, signal.SIGUSR2):
        _child = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=kept,
        )
    try:
        while _child.poll() is None:
            time.sleep(0.1)
    except BaseException:
        _stop()
        raise
    return _child.returncode


@contextlib.contextmanager
def _ignore(*numbers: int) -> Iterator[None]:
    """Lets processes that start in the block ignore signals: SLURM sends that of submitit to them, too, and it would end them."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def split_configs(text: str) -> list[str]:
    """Splits `a:x,b:y`. A part after a comma that is neither a configuration nor a file is a word of the one before it."""
    names, shipped = [], shipped_configs()
    for part in text.split(","):
        file = part.partition(":")[0]
        is_new = file in shipped or pathlib.Path(file).expanduser().is_file() or ":" in part or not names
        names = [*names, part] if is_new else [*names[:-1], f"{names[-1]},{part}"]
    return names


def make_tasks(
    configs: Sequence[str], variants: Sequence[str], seeds: Sequence[int], *, settings: str, workdir: pathlib.Path
) -> list[Task]:
    """The tasks of a grid, seed by seed, each with a folder that is named after what differs among them.

    Args:
      configs: as after --config= of `bags-jax train`.
      variants: settings of each variant, NAME=VALUE with spaces between them.
      seeds: of every configuration and variant.
      settings: of all tasks.
      workdir: folder of the sweep.
    Raises:
      UserError: a setting is not NAME=VALUE, or two tasks are the same.
    """
    for setting in " ".join((settings, *variants)).split():
        if not re.fullmatch(r"[\w.]+=\S*", setting) or setting.startswith("seed="):
            raise UserError(
                f"the setting {setting!r} came, expected NAME=VALUE, such as loss.sharp=0, and seeds by --seeds"
            )
    tasks = []
    for seed, config, variant in itertools.product(seeds, configs, variants):
        name = ",".join(filter(None, (config, *variant.split(), f"seed={seed}")))
        folder = workdir.absolute() / re.sub(r"[^\w.,=+-]+", "-", name)
        tasks.append(Task(config, (*settings.split(), *variant.split()), seed, str(folder)))
    if twice := [task.name for task in tasks if [t.folder for t in tasks].count(task.folder) > 1]:
        raise UserError(f"{twice[0]} comes twice in the sweep: give every configuration and variant once")
    return tasks


def run_tasks(
    tasks: Sequence[T], start: Callable[[T, int], Any], *, at_once: int, tell: Callable[[T, str], None]
) -> dict[T, str]:
    """Runs tasks, so many at once, and returns the error of each, "" without one. An interruption stops those of this machine.

    Args:
      start: starts a task in a slot, 0 <= slot < at_once, and returns its submitit job.
      tell: called at the end of each task.
    """
    waiting, running, errors = list(tasks), {}, {}
    try:
        while waiting or running:
            for slot in [slot for slot in range(at_once) if slot not in running][: len(waiting)]:
                task = waiting.pop(0)
                running[slot] = task, start(task, slot)
            for slot, (task, job) in list(running.items()):
                if job.done():
                    del running[slot]
                    errors[task] = read_result(job)
                    tell(task, errors[task])
            time.sleep(PERIOD if running else 0)
    except BaseException:
        for _, job in running.values():
            if hasattr(
                job, "_process"
            ):  # submitit's local job; those of a cluster go on, and the same command awaits them
                job.cancel(check=False)
        raise
    return errors


def read_result(job: Any) -> str:
    """The line that a task returned; where it was lost, one that says so."""
    try:
        return str(job.result())
    except Exception as error:  # noqa: BLE001  # submitit raises what the task raised, and its own errors where the task was killed
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return f"its process was lost ({line}): see {job.paths.stderr}"


def make_local(folder: pathlib.Path, *, at_once: int, hours: float) -> tuple[Callable[[Runnable, int], Any], int]:
    """How to start a task on this machine, and how many at once: one for each GPU, or each CPU core where there is none.

    Each gets a GPU, or its share of the cores, of its own.
    """
    import submitit

    gpus = find_gpus()
    at_once = at_once or len(gpus) or count_cores()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    executor = submitit.LocalExecutor(folder)

    def start(task: Runnable, slot: int) -> Any:
        visible = [gpus[slot % len(gpus)]] if gpus else []
        executor.update_parameters(timeout_min=60 * hours, gpus_per_node=len(visible), visible_gpus=visible)
        own = cores[slot::at_once] or cores[slot % max(1, len(cores)) :][:1]
        return executor.submit(task, [] if gpus else own)

    return start, at_once


def make_slurm(
    folder: pathlib.Path, tasks: Sequence[T], *, at_once: int, hours: float, parameters: dict[str, Any]
) -> tuple[Callable[[T, int], Any], int]:
    """Submits the tasks to SLURM as one array, but for those of an earlier call that have not ended; see `make_local`."""
    import submitit

    path = folder / JOBS_FILE
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    jobs: dict[T, Any] = {}
    for task in tasks:
        if task.name in known and not (job := submitit.SlurmJob(folder, known[task.name])).done():
            jobs[task] = job
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1000)
    width = {"slurm_array_parallelism": at_once or len(tasks)}
    executor.update_parameters(timeout_min=int(60 * hours), **width, **parameters)
    new = [task for task in tasks if task not in jobs]
    with executor.batch():
        submitted = [executor.submit(task) for task in new]
    jobs |= dict(zip(new, submitted, strict=True))
    write_atomic(path, json.dumps({task.name: job.job_id for task, job in jobs.items()}).encode())
    return lambda task, _: jobs[task], len(tasks)


def find_gpus() -> list[int]:
    """Numbers of the NVIDIA GPUs that this process may use. JAX is not asked: it would take their memory."""
    visible, platforms = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("JAX_PLATFORMS", "")
    if platforms.startswith("cpu") or shutil.which("nvidia-smi") is None:
        return []
    if visible is not None:
        return [int(number) for number in visible.split(",") if number.isdecimal()]
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return list(range(listed.count("GPU ")))


def write_table(tasks: Sequence[Task], errors: dict[Task, str], workdir: pathlib.Path) -> str:
    """Writes sweep.csv, one line for each task, and returns the table as Markdown."""
    header, rows = ["config", "settings", "seed", "step", *SCORES, "error"], []
    for task in tasks:
        found = task.scores()
        scores = found.get("deblur_nerf", {})
        shown = [f"{scores[name]:.4g}" if isinstance(scores.get(name), float) else "" for name in SCORES]
        row = [task.config, " ".join(task.settings), str(task.seed), str(found.get("step", "")), *shown]
        rows.append([*row, errors.get(task, "")])
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    write_atomic(workdir / TABLE_FILE, text.getvalue().encode())
    return markdown_table(header, rows)
