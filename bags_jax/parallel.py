"""Data parallelism, and nothing else that knows about devices: each device takes other views, the state is the same on all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

AXIS = "devices"


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
    they are. The state is donated.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(0, None) + (None,) * num_args,
        out_axes=None,
        donate_argnums=1,
        devices=jax.local_devices()[:num_devices],
    )


def ranks(num_devices: int) -> Int[Array, "D"]:
    """The number of each device."""
    return jnp.arange(num_devices, dtype=jnp.int32)
