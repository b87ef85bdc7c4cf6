"""Checkpoints by Orbax: the training state as plain arrays, readable on any number of devices."""

import dataclasses
import math
import pathlib
from typing import Any

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from bags_jax.errors import UserError
from bags_jax.structs import Gaussians, TrainState

# What is raised where a checkpoint cannot be written: by Python, by TensorStore, by Orbax's threads.
WRITE_PROBLEMS = (OSError, ValueError, RuntimeError)


class Checkpoints:
    """The checkpoints of one working directory; use it as a context, so that the last save is complete on leaving."""

    def __init__(self, workdir: pathlib.Path, *, keep: int = 3, create: bool = True):
        # Orbax writes in the background, where a relative path would fail.
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        if not create and not self.directory.is_dir():  # to look for checkpoints leaves no trace
            raise UserError(f"no checkpoint in {self.directory}: train with this --workdir first")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
        handler = ocp.StandardCheckpointHandler()
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handler)
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be written ({error.strerror}): choose another --workdir"
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, exc_type, *_):
        try:
            self._manager.wait_until_finished()
        except WRITE_PROBLEMS as error:
            if exc_type is None:  # else there is worse to tell
                raise self._unwritten(error) from error
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps that can be restored, in order. A save that was cut off is not among them."""
        return sorted(self._manager.all_steps())

    def last(self) -> int:
        """The last of these steps; 0: there is none."""
        return max(self.steps(), default=0)

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; returns when it is safe to go on training with donated buffers.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        step = int(state.step)
        if step not in self.steps():
            arrays: dict[str, Any] = flatten_dict(flax.serialization.to_state_dict(state), sep="/")
            arrays = {name: x for name, x in arrays.items() if x.size}  # Orbax refuses empty arrays
            try:
                self._manager.save(step, args=ocp.args.StandardSave(arrays))
            except WRITE_PROBLEMS as error:
                raise self._unwritten(error) from error

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Reads a state.

        Args:
          template: a state of the same structure (`jax.eval_shape` of its maker); its shapes are not looked at, since the
            number of Gaussians changes in training. Fields that are () are left out.
          step: which one; None: the last.
        Returns:
          numpy arrays: no device of the machine that wrote them is asked for.
        Raises:
          UserError: there is none, not that one, or it cannot be read.
        """
        step = self._choose(step)
        values = {field.name: getattr(template, field.name) for field in dataclasses.fields(template)}
        left_out = [name for name, value in values.items() if isinstance(value, tuple) and not value]
        saved = {name: x for name, x in self._arrays(step).items() if name.partition("/")[0] not in left_out}
        try:
            tree = unflatten_dict(_with_empty(saved, template), sep="/")
            state: Any = flax.serialization.from_state_dict(template, tree)
            return state
        except (ValueError, KeyError, AttributeError) as error:
            raise self._unreadable(step, error) from error

    def restore_living(self, step: int | None = None) -> tuple[Gaussians, Float[np.ndarray, "N"], int]:
        """Reads only the living Gaussians and their 3D filter, and the step: needs neither configuration nor scene.

        Raises:
          UserError: as restore does.
        """
        step = self._choose(step)
        saved = self._arrays(step)
        try:
            alive = np.asarray(saved["alive"])
            empty = {"sh_rest": np.zeros((int(alive.sum()), 0, 3), np.float32)}  # of degree 0: not saved
            names = [field.name for field in dataclasses.fields(Gaussians)]
            rows = {name: saved[f"gaussians/{name}"][alive] for name in names if f"gaussians/{name}" in saved}
            return Gaussians(**{**empty, **rows}), np.asarray(saved["filter_3d"])[alive], step
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._unreadable(step, error) from error

    def _choose(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}: train with this --workdir first")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}: there are {', '.join(map(str, steps))}")
        return steps[-1] if step is None else step

    def _arrays(self, step: int) -> dict[str, Any]:
        """All arrays of a checkpoint by their path, in host memory."""
        try:
            shapes = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._manager.item_metadata(step))
            saved: Any = self._manager.restore(step, args=ocp.args.StandardRestore(shapes))
            return dict(saved)
        except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
            raise self._unreadable(step, error) from error

    def _unwritten(self, error: Exception) -> UserError:
        return UserError(
            f"a checkpoint cannot be written to {self.directory} ({_first_line(error)}): make room on the disk, and give the "
            "same command again; it goes on from the last one that is whole"
        )

    def _unreadable(self, step: int, error: Exception) -> UserError:
        others = [s for s in self.steps() if s != step]
        way_out = f"to go on from step {others[-1]}" if others else "to start again"
        return UserError(
            f"checkpoint {self.directory / str(step)} cannot be read ({_first_line(error)}): "
            f"it is damaged or of another version; remove that folder {way_out}"
        )


def _with_empty(saved: dict, template: TrainState) -> dict:
    """The saved arrays and the empty ones of the template, with as many rows as the saved state has."""
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
