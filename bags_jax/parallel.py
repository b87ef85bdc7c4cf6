"""Data parallelism: each device trains on other views; the state is equal on all devices. Only this file says pmap."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from bags_jax.errors import UserError

AXIS = "devices"


@struct.dataclass
class Empty:
    """Placeholder for an array of size 0, such as sh_rest of degree 0. It has no leaves."""

    shape: tuple[int, ...] = struct.field(pytree_node=False)
    dtype: Any = struct.field(pytree_node=False)


def psum(tree):
    """Sums over devices."""
    return jax.lax.psum(tree, AXIS)


def pmax(tree):
    """Takes the largest value over devices."""
    return jax.lax.pmax(tree, AXIS)


def replicate(tree, num_devices: int):
    """Copies arrays to every device, as `parallelize` takes and returns them: a call then copies nothing."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:num_devices]), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def parallelize(step: Callable, *, num_args: int, num_devices: int) -> Callable:
    """Maps `step(rank, state, *args) -> (state, metrics)` over devices; call the result with `ranks(num_devices)` in front.

    `rank` is the number of the device. `state` and the `num_args` others are equal on all devices, and so must be the results:
    those of the first device are kept, so that the state stays plain arrays that Orbax can save. The state is donated. It goes in
    and comes out `without_empty`.
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
    """Replaces arrays of size 0 by Empty: jaxlib 0.11.2 crashes where one is mapped over several devices."""
    return jax.tree.map(lambda x: x if x.size else Empty(x.shape, x.dtype), state)


def with_empty(state, like):
    """Replaces Empty by the arrays of size 0 of another state."""
    return jax.tree.map(lambda x, y: y if _is_empty(x) else x, state, like, is_leaf=_is_empty)


def _is_empty(node) -> bool:
    return isinstance(node, Empty)


def ranks(num_devices: int) -> Int[Array, "D"]:
    """The number of each device."""
    return jnp.arange(num_devices, dtype=jnp.int32)


def count_devices(num_devices: int, views_per_step: int) -> int:
    """Number of devices that training uses.

    Args:
      num_devices: 0: as many as can share the views of a step.
      views_per_step: 0: one for each device.
    Raises:
      UserError: JAX finds no device, fewer than num_devices, or num_devices that cannot share the views.
    """
    try:
        available = jax.local_device_count()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts that the platform of JAX_PLATFORMS is there
        raise UserError(
            f"JAX finds no device with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: unset it, or install what it needs "
            "(pip install 'bags-jax[gpu]', and the driver)"
        ) from error
    if not num_devices:
        return max(num for num in range(1, available + 1) if views_per_step % num == 0)
    if num_devices > available:
        raise UserError(f"config.num_devices is {num_devices}, but this machine has {available}: 0 takes all")
    if views_per_step % num_devices:
        raise UserError(
            f"config.views_per_step is {views_per_step}, expected a multiple of {num_devices} devices, or 0"
        )
    return num_devices
