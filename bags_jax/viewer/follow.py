"""The checkpoints of a run, also while it trains: which there are, and the scene at each."""

import dataclasses
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax.checkpoint import Checkpoints
from bags_jax.errors import UserError
from bags_jax.job import Job, check_views, first_state, state_template, with_blur
from bags_jax.ops.rasterize import buffer_size
from bags_jax.run import Run
from bags_jax.structs import TrainState
from bags_jax.workdir import read_settings

POLL_S = 1.0  # between two looks at the folder of checkpoints
MAX_BYTES = 1 << 30  # of remembered scenes in host memory: training deletes its old checkpoints
MIN_ROWS = 1 << 12  # smaller scenes share one size


def list_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints of a run, in order: a folder gets the name of its step once it is complete."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


class History:
    """The scenes of a run by step. It keeps those that were loaded, since training deletes its older checkpoints.

    May be used from several threads.
    """

    def __init__(self, workdir: pathlib.Path, job: Job):
        self.workdir = workdir
        self.job = job
        self._states: dict[int, TrainState] = {}  # loaded, oldest first
        self._saved: set[int] = set()  # on disk at the last look
        self._broken: set[int] = set()  # on disk, but not readable
        self._lock = threading.Lock()

    def steps(self) -> list[int]:
        """Steps that can be shown, in order."""
        with self._lock:
            return sorted(self._saved | self._states.keys())

    def start_at_zero(self) -> None:
        """Adds the scene before the first training step."""
        state = compact(first_state(self.job))
        with self._lock:
            self._states[0] = state

    def list_saved(self) -> list[int]:
        """Steps of the checkpoints on disk, in order."""
        return list_steps(self.workdir)

    def look(self) -> str:
        """Lists the checkpoints again and loads the newest one. Returns why it cannot be read, once; else an empty text."""
        saved, problem = [step for step in self.list_saved() if step not in self._broken], ""
        if saved and saved[-1] not in self._states:
            try:
                self.load(saved[-1])
            except UserError as error:
                newest = saved.pop()
                if newest in self.list_saved():  # else training has deleted it meanwhile
                    self._broken.add(newest)
                    problem = str(error)
        with self._lock:
            self._saved = set(saved)
        return problem

    def load_newest(self) -> TrainState:
        """The scene at the last checkpoint. Raises UserError as `load`, unless training deletes that checkpoint meanwhile."""
        while True:
            before = self.list_saved()
            try:
                return self.load(before[-1] if before else None)
            except UserError:
                if self.list_saved() == before:
                    raise

    def load(self, step: int | None) -> TrainState:
        """The scene at a step, None: the last, in host memory, as `compact` makes it.

        Raises:
          UserError: there is no such checkpoint, or it cannot be read.
        """
        with self._lock:
            if step is not None and step in self._states:
                return self._states[step]
        with Checkpoints(self.workdir, create=False) as checkpoints:
            state = checkpoints.restore(state_template(self.job), step)
        check_views(state, self.job.scene)
        self._follow_kernels()
        state = compact(state)
        with self._lock:
            self._states[int(state.step)] = state
            while len(self._states) > 2 and sum(map(count_bytes, self._states.values())) > MAX_BYTES:
                self._states.pop(next(iter(self._states)))
        return state

    def _follow_kernels(self) -> None:
        """Takes over the sizes of the kernels, which training may have enlarged; those of earlier stages are as they were."""
        sizes, blur = read_settings(self.workdir).blur.kernel_sizes, self.job.settings.blur
        if sizes != blur.kernel_sizes:
            self.job = with_blur(self.job, dataclasses.replace(blur, kernel_sizes=sizes))

    def run(self, step: int) -> Run:
        """The run at a step, on the device: see `load`."""
        return Run(self.workdir, self.job, jax.tree.map(jnp.asarray, self.load(step)))


def compact(state: TrainState) -> TrainState:
    """The living rows of a state as numpy arrays, padded with dead rows to one of few sizes: few programs to compile."""
    alive = np.asarray(state.alive)
    living = np.flatnonzero(alive)
    rows = np.concatenate([living, np.flatnonzero(~alive)])[: max(MIN_ROWS, buffer_size(len(living)))]
    pick = lambda x: np.asarray(x)[rows]
    state = jax.tree.map(np.asarray, state)
    return dataclasses.replace(
        state,
        gaussians=jax.tree.map(pick, state.gaussians),
        alive=pick(state.alive),
        filter_3d=pick(state.filter_3d),
        density=jax.tree.map(pick, state.density),
    )


def count_bytes(state: TrainState) -> int:
    """Bytes of all arrays of a state."""
    return sum(np.asarray(x).nbytes for x in jax.tree.leaves(state))
