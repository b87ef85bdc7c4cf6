"""Data parallelism: each device takes other views, the state is the same on all. What a backend is good at, each module asks itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

AXIS = "devices"


@struct.dataclass
class Empty:
    """What stands for an array of size 0, such as the colours of degree 1 and above where there are none: no leaf of a pytree."""

    shape: tuple[int, ...] = struct.field(pytree_node=False)
    dtype: Any = struct.field(pytree_node=False)


def psum(tree):
    """Sum over devices."""
    return jax.lax.psum(tree, AXIS)


def pmax(tree):
    """Largest over devices."""
    return jax.lax.pmax(tree, AXIS)


def replicate(tree, num_devices: int):
    """The same arrays on every device: what `parallelize` takes and returns, so that nothing is copied at a call."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:num_devices]), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def parallelize(step: Callable, *, num_args: int, num_devices: int) -> Callable:
    """Maps `step(rank, state, *args) -> (state, metrics)` over devices; call it with `ranks(num_devices)` in front.

    `rank` is the number of the device. `state` and the `num_args` others are the same on all devices, and so must be the
    results: those of the first device are kept, so that the state stays un-replicated, plain arrays that Orbax saves as
    they are. The state is donated. It goes in and comes out `without_empty`.
    """

    def mapped(rank, state, *args):
        zeros = lambda x: jnp.zeros(x.shape, x.dtype) if _is_empty(x) else x
        state, metrics = step(rank, jax.tree.map(zeros, state, is_leaf=_is_empty), *args)
        return without_empty(state), metrics

    return jax.pmap(
        mapped,
        axis_name=AXIS,
        in_axes=(0, None) + (None,) * num_args,
        out_axes=None,
        donate_argnums=1,
        devices=jax.local_devices()[:num_devices],
    )


def without_empty(state):
    """The state with Empty for its arrays of size 0: where one is mapped over several devices, jaxlib 0.11.2 crashes."""
    return jax.tree.map(lambda x: x if x.size else Empty(x.shape, x.dtype), state)


def with_empty(state, like):
    """The state with the arrays of size 0 of another."""
    return jax.tree.map(lambda x, y: y if _is_empty(x) else x, state, like, is_leaf=_is_empty)


def _is_empty(node) -> bool:
    return isinstance(node, Empty)


def ranks(num_devices: int) -> Int[Array, "D"]:
    """The number of each device."""
    return jnp.arange(num_devices, dtype=jnp.int32)
