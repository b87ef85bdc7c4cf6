"""The flags that say where the tasks of a sweep run, and how to start them there."""

import contextlib
import importlib.util
import pathlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from bags_jax.errors import UserError
from bags_jax.sweep import T, make_local, make_slurm

_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "slurm"], "Where the tasks run.")
_AT_ONCE = flags.DEFINE_integer(
    "at_once", 0, "Tasks at once; 0: local: one for each GPU, or core without one; slurm: all.", lower_bound=0
)
_HOURS = flags.DEFINE_float("hours", 24.0, "Time limit of a task; on SLURM it is then queued again.", lower_bound=0.01)
_PARTITION = flags.DEFINE_string("partition", None, "SLURM: partition.")
_ACCOUNT = flags.DEFINE_string("account", None, "SLURM: account.")
_GPUS = flags.DEFINE_integer("gpus", 1, "SLURM: GPUs of a task.", lower_bound=0)
_CORES = flags.DEFINE_integer("cores", 8, "SLURM: CPU cores of a task.", lower_bound=1)
_MEMORY = flags.DEFINE_integer("memory_gb", 64, "SLURM: memory of a task, GB.", lower_bound=1)


def start_executor(tasks: Sequence[T], workdir: pathlib.Path) -> tuple[Callable[[T, int], Any], int]:
    """How to start a task, as sweep.run_tasks takes it, and how many at once.

    Raises:
      UserError: submitit is not installed, or the executor cannot start.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError("several trainings at once need submitit: pip install 'bags-jax[sweep]'")
    folder, limits = workdir / "jobs", {"at_once": _AT_ONCE.value, "hours": _HOURS.value}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _EXECUTOR.value == "slurm":
            return make_slurm(folder, tasks, parameters=_slurm_parameters(), **limits)
        return make_local(folder, **limits)
    except (OSError, RuntimeError, LookupError) as error:
        raise UserError(f"--executor={_EXECUTOR.value} cannot start ({' '.join(str(error).split())})") from error


def _slurm_parameters() -> dict:
    """Parameters of submitit."""
    given = {"slurm_partition": _PARTITION.value, "slurm_account": _ACCOUNT.value}
    sizes = {"cpus_per_task": _CORES.value, "mem_gb": _MEMORY.value, "slurm_signal_delay_s": 120}
    gpus = {"gpus_per_node": _GPUS.value} if _GPUS.value else {}
    return {**sizes, **gpus, **{name: value for name, value in given.items() if value}}


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, as Ctrl-C does, so that the tasks of this machine are stopped."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
