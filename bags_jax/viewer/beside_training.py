"""The viewer beside a training run: a process of its own, on the CPU, at the lowest priority, that reads checkpoints."""

import contextlib
import multiprocessing
import multiprocessing.process
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from bags_jax.errors import UserError
from bags_jax.viewer.port import check_viewer
from bags_jax.viewer.server import open_history, serve
from bags_jax.workdir import CONFIG_FILE

NICENESS = 19  # the lowest priority: training takes what it needs first
NUM_SHOWN = 40  # checkpoints of a whole training that the viewer shows, where training itself writes fewer
LEAST_PERIOD = 250  # steps between two of them: one costs a CPU as much as 10 steps of the smallest scenes
POLL_S = 0.5


def checkpoint_period(num_steps: int, period: int) -> int:
    """Steps between two checkpoints of a training that is watched: at most the period that was set."""
    return min(period, max(LEAST_PERIOD, -(-num_steps // NUM_SHOWN)))


@contextlib.contextmanager
def watch_training(
    workdir: str | pathlib.Path, *, host: str, port: int
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Runs the viewer in a process as long as the context lasts, and yields that process.

    Raises:
      UserError: viser is not installed, or the port is taken.
    """
    check_viewer(host, port)
    cache: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[reportAttributeAccessIssue]
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(str(workdir), host, port, cache), daemon=True
    )
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process inherits this: Ctrl-C is for training alone
    process.start()
    signal.signal(signal.SIGINT, ignored)
    try:
        yield process
    finally:
        process.terminate()
        process.join()


def _serve(workdir: str, host: str, port: int, compilation_cache: str | None) -> None:
    """The process: waits until the run has its settings, then serves it until training ends, even where that is killed."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to training
    jax.config.update("jax_compilation_cache_dir", compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    training: Any = multiprocessing.parent_process()

    def is_over() -> bool:
        return not training.is_alive()

    while not (pathlib.Path(workdir).expanduser() / CONFIG_FILE).exists():
        if is_over():
            return
        time.sleep(POLL_S)
    try:
        serve(open_history(workdir, waits=True), host=host, port=port, is_over=is_over)
    except UserError as error:
        print(f"the viewer has ended: {error}", file=sys.stderr)
