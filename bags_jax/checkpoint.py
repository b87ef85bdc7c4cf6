"""Checkpoints by Orbax: the training state as plain arrays, readable on any number of devices.

    checkpoints/1000/default/      the arrays, as Orbax writes them
    checkpoints/1000/sha256.json   SHA-256 of every array, checked when they are read
    checkpoints/1000.damaged/      a checkpoint that training found damaged and went past
    checkpoints/.1000.unfinished   being written;  .1000.deleted: being deleted

A folder gets its name in one step, after all its files are on the disk, and loses it in one step before they are deleted:
a process that is killed at any moment leaves whole checkpoints. Only `Checkpoints` imports Orbax: that takes long, and
`import bags_jax` should not.
"""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import pathlib
import shutil
import sys
from concurrent import futures
from typing import Any

import flax.serialization
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from bags_jax.atomic import sync, sync_tree
from bags_jax.checksums import check_arrays, read_checksums, write_checksums
from bags_jax.errors import UserError
from bags_jax.parallel import is_alone
from bags_jax.structs import Gaussians, TrainState

ARRAYS = "default"  # Orbax' folder in that of a checkpoint
# Limit of a save. Orbax measures it by the wall clock, which jumps when a machine sleeps or its clock is set, from 1970 at worst.
SAVE_LIMIT_S = 2 * 10**9
# Exceptions of a failed write: from Python, TensorStore and the threads of Orbax.
WRITE_PROBLEMS = (OSError, ValueError, RuntimeError)


class Checkpoints:
    """The checkpoints of one working directory. A context: leaving it waits until the last save is complete.

    Without `writes`, as in all processes of a training but the first, it neither reads nor writes: there is no checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 3, create: bool = True, writes: bool = True):
        # Orbax writes in the background, where a relative path would fail.
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        self._keep, self._writes = keep, writes
        self._pool = futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: futures.Future | None = None
        self._orbax: Any = None
        self._whole: tuple[int, dict[str, Any]] | None = None  # what `resume` has read
        if not create and not self.directory.is_dir():  # reading must not create the folder
            raise UserError(f"no checkpoint in {self.directory}: train with this --workdir first")
        try:
            if writes:
                self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be written ({error.strerror}): choose another --workdir"
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, exc_type, *_):
        try:
            self._wait()
        except UserError:
            if exc_type is None:  # another exception matters more
                raise
        finally:
            self._pool.shutdown()
            if self._orbax is not None:
                with contextlib.suppress(*WRITE_PROBLEMS):  # reported above
                    self._orbax.close()

    def steps(self) -> list[int]:
        """Steps of all checkpoints, in order. Waits for the save in the background."""
        if self._saving is not None:
            futures.wait([self._saving])
        return self._list()

    def _list(self) -> list[int]:
        """Steps of all checkpoints on disk, in order."""
        names = os.listdir(self.directory) if self.directory.is_dir() else []
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    def last(self) -> int:
        """Step of the last checkpoint; 0: there is none."""
        return max(self.steps(), default=0)

    def resume(self) -> int:
        """Finds the newest whole checkpoint, from which training goes on. The caller must hold the lock of the directory.

        Damaged newer ones are renamed, one line each. Leftovers of killed processes are removed.

        Returns:
          its step; 0: there is no checkpoint.
        Raises:
          UserError: there are checkpoints, but none is whole.
        """
        if not self._writes:
            return 0
        for path in self.directory.glob(".*"):
            if path.name.endswith((".unfinished", ".deleted")):
                shutil.rmtree(path, ignore_errors=True)
        if not self.steps():
            return 0
        step, arrays, damaged = self._read_newest()
        for other, reason in damaged:
            aside = self._set_aside(other)
            _note(
                f"checkpoint {other} is damaged ({reason}): renamed to {aside.name}; training goes on from step {step}"
            )
        self._whole = step, arrays
        return step

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; returns when its buffers may be donated.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        if not self._writes:
            return
        self._wait()
        step = int(state.step)
        if step in self.steps():
            return
        arrays: dict[str, Any] = flatten_dict(flax.serialization.to_state_dict(state), sep="/")
        arrays = {name: x for name, x in arrays.items() if x.size}  # Orbax refuses empty arrays
        draft = self.directory / f".{step}.unfinished"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            copies = {name: np.asarray(x) for name, x in arrays.items()}
            # Several processes: process 0 alone saves, and Orbax refuses JAX arrays that are of one process alone.
            self._checkpointer().save(draft / ARRAYS, arrays if is_alone() else copies)
            self._saving = self._pool.submit(self._finish, step, draft, copies)
        except WRITE_PROBLEMS as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise self._unwritten(error) from error

    def _finish(self, step: int, draft: pathlib.Path, copies: dict[str, np.ndarray]) -> None:
        """Hashes the arrays while Orbax writes them, gives the folder its name and deletes old checkpoints."""
        try:
            write_checksums(draft, copies)
            self._checkpointer().wait_until_finished()
            sync_tree(draft)
            os.rename(draft, self.directory / str(step))
            sync(self.directory)
        except WRITE_PROBLEMS:
            with contextlib.suppress(*WRITE_PROBLEMS):
                self._checkpointer().wait_until_finished()
            shutil.rmtree(draft, ignore_errors=True)  # a full disk needs the space
            raise
        for old in self._list()[: -self._keep]:
            deleted = self.directory / f".{old}.deleted"
            shutil.rmtree(deleted, ignore_errors=True)
            os.rename(self.directory / str(old), deleted)
            shutil.rmtree(deleted, ignore_errors=True)

    def _wait(self) -> None:
        """Waits for the save in the background. Raises UserError if it failed."""
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except WRITE_PROBLEMS as error:
            raise self._unwritten(error) from error

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Reads a checkpoint, and checks every array of it.

        Args:
          template: a state of the same structure, such as `jax.eval_shape` gives. Its shapes do not matter, because the number of
            Gaussians changes in training. Fields that are () in the template are not restored.
          step: which checkpoint; None: the newest whole one. Damaged newer ones are passed over, one line each.
        Returns:
          numpy arrays, independent of the devices that wrote them.
        Raises:
          UserError: there is no checkpoint, not this one, or it cannot be read.
        """
        step, saved = self._read(step)
        values = {field.name: getattr(template, field.name) for field in dataclasses.fields(template)}
        left_out = [name for name, value in values.items() if isinstance(value, tuple) and not value]
        saved = {name: x for name, x in saved.items() if name.partition("/")[0] not in left_out}
        try:
            tree = unflatten_dict(_with_empty(saved, template), sep="/")
            state: Any = flax.serialization.from_state_dict(template, tree)
            return state
        except (ValueError, KeyError, AttributeError) as error:
            raise self._unreadable(step, _first_line(error)) from error

    def restore_living(self, step: int | None = None) -> tuple[Gaussians, Float[np.ndarray, "N"], int]:
        """Reads the living Gaussians, their 3D filter and the step. Needs neither settings nor scene.

        Raises:
          UserError: as `restore`.
        """
        step, saved = self._read(step)
        try:
            alive = np.asarray(saved["alive"])
            empty = {"sh_rest": np.zeros((int(alive.sum()), 0, 3), np.float32)}  # of degree 0: not saved
            names = [field.name for field in dataclasses.fields(Gaussians)]
            rows = {name: saved[f"gaussians/{name}"][alive] for name in names if f"gaussians/{name}" in saved}
            return Gaussians(**{**empty, **rows}), np.asarray(saved["filter_3d"])[alive], step
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._unreadable(step, _first_line(error)) from error

    def _read(self, step: int | None) -> tuple[int, dict[str, Any]]:
        """All arrays of a checkpoint by path, in host memory; None: of the newest whole one."""
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}: train with this --workdir first")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}: there are {', '.join(map(str, steps))}")
        whole, self._whole = self._whole, None  # read once: it may take gigabytes
        if whole is not None and step in (None, whole[0]):
            return whole
        if step is not None:
            try:
                return step, self._load(step)
            except ValueError as error:
                raise self._unreadable(step, str(error)) from error
        newest, arrays, damaged = self._read_newest()
        for other, reason in damaged:
            _note(f"checkpoint {self.directory / str(other)} is damaged ({reason}): step {newest} is read instead")
        return newest, arrays

    def _read_newest(self) -> tuple[int, dict[str, Any], list[tuple[int, str]]]:
        """The newest whole checkpoint: step and arrays; and the newer ones, each with what is wrong with it."""
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            try:
                return step, self._load(step), damaged
            except ValueError as error:
                damaged.append((step, str(error)))
        if not damaged:  # deleted meanwhile
            raise UserError(f"no checkpoint in {self.directory}: train with this --workdir first")
        raise self._unreadable(*damaged[0], others=False)

    def _load(self, step: int) -> dict[str, Any]:
        """All arrays of a checkpoint. Raises ValueError, one line, where it is damaged."""
        folder = self.directory / str(step)
        try:
            _check_kinds(folder)
            rows = read_checksums(folder)
            shapes = {name: np.zeros(row["shape"], row["dtype"]) for name, row in rows.items()}
            saved: Any = dict(self._checkpointer().restore(folder / ARRAYS, shapes))
            check_arrays(saved, rows)
            return saved
        except Exception as error:  # Orbax and TensorStore raise anything on damaged files
            raise ValueError(_first_line(error)) from error

    def _set_aside(self, step: int) -> pathlib.Path:
        """Renames a damaged checkpoint, so that training can write that step again. Returns the new path."""
        names = [f"{step}.damaged", *(f"{step}.damaged-{i}" for i in range(2, 1000))]
        aside = next(path for name in names if not (path := self.directory / name).exists())
        try:
            os.rename(self.directory / str(step), aside)
        except OSError as error:
            raise self._unwritten(error) from error
        return aside

    def _checkpointer(self) -> Any:
        if self._orbax is None:
            import orbax.checkpoint as ocp

            logging.getLogger("absl").addFilter(_is_not_of_orbax)
            # By itself Orbax waits for all processes of jax.distributed; here only one of them saves and restores.
            own = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="bags_jax")
            options: dict[str, Any] = {} if is_alone() else {"multiprocessing_options": own}
            # In the background Orbax waits for folders by the wall clock, with another limit: make them before the save.
            background = ocp.options.AsyncOptions(timeout_secs=SAVE_LIMIT_S, create_directories_asynchronously=False)
            self._orbax = ocp.StandardCheckpointer(async_options=background, **options)
        return self._orbax

    def _unwritten(self, error: Exception) -> UserError:
        full = os.strerror(errno.ENOSPC)
        reason = full if full in str(error) else _first_line(error)  # TensorStore says it after two long paths
        return UserError(
            f"a checkpoint cannot be written to {self.directory} ({reason}): free space on the disk and repeat the "
            "command; it goes on from the last complete checkpoint"
        )

    def _unreadable(self, step: int, reason: str, *, others: bool = True) -> UserError:
        rest = [s for s in self.steps() if s != step]
        way_out = f"to go on from step {rest[-1]}" if rest and others else "to start again"
        folder = (
            f"{self.directory / str(step)} and every older one" if rest and not others else self.directory / str(step)
        )
        return UserError(
            f"checkpoint {folder} cannot be read ({reason}): "
            f"it is damaged or of another version or blur model; move that folder away {way_out}"
        )


def _with_empty(saved: dict, template: TrainState) -> dict:
    """Adds the empty arrays of the template to the saved arrays, with as many rows as the saved state has."""
    expected: dict[str, Any] = flatten_dict(flax.serialization.to_state_dict(template), sep="/", keep_empty_nodes=True)
    rows = saved["alive"].shape[0]
    empty = {
        name: np.zeros((rows, *x.shape[1:]), x.dtype) if hasattr(x, "shape") else x
        for name, x in expected.items()
        if name not in saved and math.prod(getattr(x, "shape", (0,))) == 0
    }
    return {**empty, **saved}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """False for what Orbax' threads log, such as tracebacks on a full disk: their exceptions reach `Checkpoints` as well."""
    return "/orbax/" not in record.pathname


def _check_kinds(folder: pathlib.Path) -> None:
    """Raises ValueError for a pipe or a link in a checkpoint, which Orbax would read without end."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.name} is neither a file nor a folder")


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)
