"""Checkpoints by Orbax: the training state as plain arrays, readable on any number of devices.

Only `Checkpoints` imports Orbax: that takes long, and `import bags_jax` should not.
"""

import dataclasses
import math
import pathlib
from typing import Any

import flax.serialization
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from bags_jax.errors import UserError
from bags_jax.structs import Gaussians, TrainState

# Exceptions of a failed write: from Python, TensorStore and the threads of Orbax.
WRITE_PROBLEMS = (OSError, ValueError, RuntimeError)


class Checkpoints:
    """The checkpoints of one working directory. A context: leaving it waits until the last save is complete."""

    def __init__(self, workdir: pathlib.Path, *, keep: int = 3, create: bool = True):
        # Orbax writes in the background, where a relative path would fail.
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        if not create and not self.directory.is_dir():  # reading must not create the folder
            raise UserError(f"no checkpoint in {self.directory}: train with this --workdir first")
        import orbax.checkpoint as ocp

        self._args = ocp.args
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
            if exc_type is None:  # another exception matters more
                raise self._unwritten(error) from error
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def last(self) -> int:
        """Step of the last checkpoint; 0: there is none."""
        return max(self.steps(), default=0)

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; returns when its buffers may be donated.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        step = int(state.step)
        if step not in self.steps():
            arrays: dict[str, Any] = flatten_dict(flax.serialization.to_state_dict(state), sep="/")
            arrays = {name: x for name, x in arrays.items() if x.size}  # Orbax refuses empty arrays
            try:
                self._manager.save(step, args=self._args.StandardSave(arrays))
            except WRITE_PROBLEMS as error:
                raise self._unwritten(error) from error

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Reads a checkpoint.

        Args:
          template: a state of the same structure, such as `jax.eval_shape` gives. Its shapes do not matter, because the number of
            Gaussians changes in training. Fields that are () in the template are not restored.
          step: which checkpoint; None: the last.
        Returns:
          numpy arrays, independent of the devices that wrote them.
        Raises:
          UserError: there is no checkpoint, not this one, or it cannot be read.
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
        """Reads the living Gaussians, their 3D filter and the step. Needs neither settings nor scene.

        Raises:
          UserError: as `restore`.
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
        """All arrays of a checkpoint by path, in host memory."""
        try:
            shapes = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._manager.item_metadata(step))
            saved: Any = self._manager.restore(step, args=self._args.StandardRestore(shapes))
            return dict(saved)
        except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
            raise self._unreadable(step, error) from error

    def _unwritten(self, error: Exception) -> UserError:
        return UserError(
            f"a checkpoint cannot be written to {self.directory} ({_first_line(error)}): free space on the disk and repeat the "
            "command; it goes on from the last complete checkpoint"
        )

    def _unreadable(self, step: int, error: Exception) -> UserError:
        others = [s for s in self.steps() if s != step]
        way_out = f"to go on from step {others[-1]}" if others else "to start again"
        return UserError(
            f"checkpoint {self.directory / str(step)} cannot be read ({_first_line(error)}): "
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
