"""The rows of a state: every array that has one for each Gaussian, whole or split over devices (shards.Shards).

A whole state has arrays [N ...]. In a split state they are [D n ...]: row i is at [i % D, i // D]. New rows, at the end, and
those that density control fills, the first that are free, are thus spread evenly over the devices, and the state grows without
moving rows between them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax.parallel import gather_shards, own_shards
from bags_jax.shards import Shards
from bags_jax.structs import TrainState

FIELDS = ("gaussians", "alive", "filter_3d", "gaussians_opt", "density")  # of a state, that have such arrays


def map_rows(state: TrainState, change: Callable[[Any], Any]) -> TrainState:
    """Applies `change` to every array of rows."""
    axes = state.alive.shape
    each = lambda x: change(x) if x.shape[: len(axes)] == axes else x
    return dataclasses.replace(state, **{name: jax.tree.map(each, getattr(state, name)) for name in FIELDS})


def row_axes(state: TrainState):
    """A tree as the state: 0 for the arrays of rows, None for others."""
    nothing = jax.tree.map(lambda _: None, state)
    axes = state.alive.shape
    each = lambda x: 0 if x.shape[: len(axes)] == axes else None
    return dataclasses.replace(nothing, **{name: jax.tree.map(each, getattr(state, name)) for name in FIELDS})


def split_rows(state: TrainState, shards: Shards) -> TrainState:
    """Splits the rows of a whole state, as NumPy arrays, with dead rows at the end where they cannot be shared out evenly.

    With several processes: those of the devices of this one.
    """
    num = -(-state.alive.shape[0] // shards.num)

    def split(x):
        padded = np.pad(np.asarray(x), [(0, num * shards.num - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
        return np.swapaxes(padded.reshape(num, shards.num, *x.shape[1:]), 0, 1)[own_shards(shards.num)]

    return map_rows(state, split)


def join_rows(state: TrainState, *, max_rows: int) -> TrainState:
    """Undoes `split_rows`: rows after max_rows, which are dead, are dropped. Waits for all processes."""

    def join(x):
        everywhere = np.swapaxes(gather_shards(x), 0, 1)
        return everywhere.reshape(math.prod(everywhere.shape[:2]), *x.shape[2:])[:max_rows]

    return map_rows(state, join)


def grow(state: TrainState, capacity: int) -> TrainState:
    """Returns the state with `capacity` rows on each device; new rows are dead. Only outside jit, because shapes change."""
    num, axis = state.alive.shape[-1], state.alive.ndim - 1
    if capacity < num:
        raise ValueError(f"capacity {capacity} came for {num} rows, expected at least as many: a state never shrinks")
    return map_rows(
        state, lambda x: jnp.pad(x, [(0, 0)] * axis + [(0, capacity - num)] + [(0, 0)] * (x.ndim - axis - 1))
    )


def ungrow(state: TrainState, capacity: int) -> TrainState:
    """Undoes `grow`, as long as no Gaussian is in the new rows: returns the state with `capacity` rows on each device."""
    axis = state.alive.ndim - 1
    return map_rows(state, lambda x: jax.lax.slice_in_dim(x, 0, capacity, axis=axis))
