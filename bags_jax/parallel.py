"""Data parallelism: each device trains on other views; the state is equal on all devices. Only this file says pmap.

Where the Gaussians are split (config.shard_gaussians), their rows, and all that has a row for each, are the exception: row i is
on device i % D. Arrays of rows then have two axes [D n], of which the first is that of the devices; within a step, [n].

With several processes (jax.distributed) the mapped axis spans the devices of all of them. Everywhere else an array lives on
the devices of its own process, equal in all processes: only the functions of this file exchange anything, and all processes
must call them in the same order.
"""

import copy
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from bags_jax.errors import UserError

AXIS = "devices"
EVERYWHERE = PartitionSpec()  # replicated


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


def is_alone() -> bool:
    """True if this process trains without others."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """True in the process that writes the files of a run: number 0."""
    return is_alone() or jax.process_index() == 0


def replicate(tree, num_devices: int):
    """Copies arrays to every device of this process, as `parallelize` takes and returns them: a call then copies nothing.

    Args:
      num_devices: of all processes together.
    """
    return jax.device_put(tree, NamedSharding(_local_mesh(num_devices), EVERYWHERE))


def parallelize(step: Callable, *, num_args: int, num_devices: int, num_shards: int = 1, axes: Any = None) -> Callable:
    """Maps `step(rank, state, *args) -> (state, metrics)` over devices; call the result with `ranks(num_devices)` in front.

    `rank` is the number of the device. `state` and the `num_args` others are equal on all devices, and so must be the results:
    those of the first device are kept, so that the state stays plain arrays that Orbax can save. The state is donated. It goes in
    and comes out `without_empty`.

    Args:
      step: un-mapped.
      num_args: number of arguments after the state.
      num_devices: of all processes together.
      num_shards: number of devices that the rows of the state are split over: 1, or all.
      axes: a tree as the state: 0 for arrays with the axis of the devices, None for others. None: there are none.
    """

    def mapped(rank, state, *args):
        new, metrics = step(rank, _full(state, num_shards), *args)
        # An Empty of the state that came, whose shape is that of all shards.
        return jax.tree.map(
            lambda x, y: x if _is_empty(x) else y, state, without_empty(new), is_leaf=_is_empty
        ), metrics

    if not is_alone():
        return AcrossProcesses(mapped, num_args=num_args, num_devices=num_devices, axes=axes)
    return jax.pmap(
        mapped,
        axis_name=AXIS,
        in_axes=(0, axes) + (None,) * num_args,
        out_axes=(axes, None),
        donate_argnums=1,
        devices=jax.local_devices()[:num_devices],
    )


def measure(function: Callable, *, num_args: int, num_devices: int, num_shards: int, axes: Any) -> Callable:
    """Maps `function(state, *args)` over devices, as `parallelize` does; its results are equal on all. The state is kept."""
    mapped = lambda rank, state, *args: ({}, function(_full(state, num_shards), *args))
    if not is_alone():
        run: Any = AcrossProcesses(mapped, num_args=num_args, num_devices=num_devices, axes=axes, keeps_state=True)
    else:
        in_axes, devices = (0, axes) + (None,) * num_args, jax.local_devices()[:num_devices]
        run = jax.pmap(mapped, axis_name=AXIS, in_axes=in_axes, out_axes=None, devices=devices)
    return lambda *args: run(ranks(num_devices), *args)[1]


def _full(state, num_shards: int):
    """The state of one device with arrays of size 0 in place of Empty."""

    def fill(x):
        if not _is_empty(x):
            return x
        is_split = num_shards > 1 and x.shape[0] == _count_own(num_shards)
        return jnp.zeros(x.shape[1:] if is_split else x.shape, x.dtype)

    return jax.tree.map(fill, state, is_leaf=_is_empty)


class AcrossProcesses:
    """The twin of `jax.pmap` for several processes: `jax.shard_map` over the devices of all, which JAX makes of pmap, too.

    pmap itself cannot be compiled ahead there: its program takes arrays that span the processes. Here arrays of this process go
    in and come out, without copies.

    Args:
      mapped, num_args, num_devices, axes: as in `parallelize`.
      keeps_state: the state is not donated, and does not come out.
    """

    def __init__(
        self, mapped: Callable, *, num_args: int, num_devices: int, axes: Any = None, keeps_state: bool = False
    ):
        self._num_devices, self._mesh = num_devices, _mesh(num_devices)
        self._axes, self._axes_out = axes, None if keeps_state else axes

        def body(ranks, state, *args):
            state, metrics = mapped(
                ranks[0], _map_axes(lambda axis, x: x if axis is None else x[0], axes, state), *args
            )
            return _map_axes(lambda axis, x: x if axis is None else x[None], self._axes_out, state), metrics

        of_state, of_result = (jax.tree.map(_spec, tree, is_leaf=_is_none) for tree in (axes, self._axes_out))
        sharded = jax.shard_map(
            body,
            mesh=self._mesh,
            in_specs=(PartitionSpec(AXIS), of_state, *[EVERYWHERE] * num_args),
            out_specs=(of_result, EVERYWHERE),
            check_vma=False,
        )
        self._run: Any = jax.jit(sharded, donate_argnums=() if keeps_state else 1)

    def __call__(self, ranks, state, *args):
        sharding = NamedSharding(self._mesh, PartitionSpec(AXIS))
        ranks = jax.make_array_from_callback(ranks.shape, sharding, np.asarray(ranks).__getitem__)
        state = _map_axes(self._to_all, self._axes, state)
        state, metrics = self._run(ranks, state, *_map_axes(self._to_all, None, args))
        return _map_axes(self._to_own, self._axes_out, state), _map_axes(self._to_own, None, metrics)

    def lower(self, ranks, state, *args) -> "AcrossProcesses":
        """Traces the program for arguments of these shapes."""

        def shape(axis, x):
            full = x.shape if axis is None else (self._num_devices, *x.shape[1:])
            return jax.ShapeDtypeStruct(full, x.dtype, sharding=NamedSharding(self._mesh, _spec(axis)))

        ranks = jax.ShapeDtypeStruct(ranks.shape, ranks.dtype, sharding=NamedSharding(self._mesh, PartitionSpec(AXIS)))
        return self._with(self._run.lower(ranks, _map_axes(shape, self._axes, state), *_map_axes(shape, None, args)))

    def compile(self, **options) -> "AcrossProcesses":
        """Compiles what `lower` has traced."""
        return self._with(self._run.compile(**options))

    def _with(self, run: Any) -> "AcrossProcesses":
        other = copy.copy(self)
        other._run = run
        return other

    def _to_all(self, axis, x):
        """An array of this process as one over the devices of all processes. It shares memory with the one that came."""
        own = replicate(x, self._num_devices) if axis is None else x
        parts = [part.data for part in own.addressable_shards]
        shape = own.shape if axis is None else (self._num_devices, *own.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(self._mesh, _spec(axis)), parts)

    def _to_own(self, axis, x):
        """The part of this process of an array over the devices of all."""
        sharding = NamedSharding(_local_mesh(self._num_devices), _spec(axis))
        shape = x.shape if axis is None else (_count_own(self._num_devices), *x.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, [part.data for part in x.addressable_shards])


def _is_none(axis) -> bool:
    return axis is None


def _spec(axis) -> PartitionSpec:
    return EVERYWHERE if axis is None else PartitionSpec(AXIS)


def _map_axes(change: Callable, axes, tree):
    """Applies `change(axis, array)` to the arrays of a tree; `axes` is a tree as this one, or None for all."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(functools.partial(change, axis), part), axes, tree, is_leaf=_is_none
    )


def _count_own(num_devices: int) -> int:
    """Devices of this process among those of all."""
    return num_devices // jax.process_count()


def _mesh(num_devices: int) -> Mesh:
    """The first devices of each process, as many of each."""
    per_process = _count_own(num_devices)
    own: dict[int, list] = {}
    for device in jax.devices():
        own.setdefault(device.process_index, []).append(device)
    return Mesh(np.array([device for i in sorted(own) for device in own[i][:per_process]]), (AXIS,))


def _local_mesh(num_devices: int) -> Mesh:
    return Mesh(np.array(jax.local_devices()[: _count_own(num_devices)]), (AXIS,))


def count_raised(is_raised: bool, num_devices: int) -> Int[np.ndarray | Array, ""]:
    """Number of devices whose process has raised a flag. With several processes a future, equal in all."""
    if is_alone():
        return np.asarray(num_devices * is_raised, np.int32)
    sharding = NamedSharding(_mesh(num_devices), PartitionSpec(AXIS))
    flags = jax.make_array_from_callback((num_devices,), sharding, lambda index: np.full(1, is_raised, np.int32))
    return _total(sharding.mesh)(flags).addressable_data(0)


@functools.cache
def _total(mesh: Mesh) -> Callable:
    add = lambda flags: jax.lax.psum(flags[0], AXIS)
    return jax.jit(jax.shard_map(add, mesh=mesh, in_specs=PartitionSpec(AXIS), out_specs=EVERYWHERE, check_vma=False))


def gather_text(text: str) -> list[str]:
    """The texts of all processes, in their order. Waits for all."""
    if is_alone():
        return [text]
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(data.size)))
    padded = np.zeros(int(sizes.max()) + 1, np.uint8)
    padded[: data.size] = data
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(sizes), -1))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def share_text(text: str) -> str:
    """The text of process 0, in all processes. Waits for all."""
    return gather_text(text if is_first() else "")[0]


def largest(number: int) -> int:
    """The largest of the numbers of all processes. Waits for all."""
    return number if is_alone() else max(int(text) for text in gather_text(str(number)))


def share_tree(tree, like):
    """The arrays of process 0, in all processes, as NumPy arrays. Waits for all.

    Args:
      tree: only that of process 0 matters.
      like: a tree of the same structure; its shapes do not matter.
    """
    if is_alone():
        return tree
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.leaves(tree) if is_first() else [], jax.tree.structure(like)
    shapes = json.loads(share_text(json.dumps([[list(np.shape(x)), str(np.asarray(x).dtype)] for x in leaves])))
    if not is_first():
        leaves = [np.zeros(shape, dtype) for shape, dtype in shapes]
    full = [np.asarray(x) for x in leaves if np.size(x)]
    received = iter(multihost_utils.broadcast_one_to_all(full))
    return structure.unflatten([next(received) if np.size(x) else np.asarray(x) for x in leaves])


def without_empty(state):
    """Replaces arrays of size 0 by Empty: jaxlib 0.11.2 crashes where one is mapped over several devices."""
    return jax.tree.map(lambda x: x if x.size else Empty(x.shape, x.dtype), state)


def with_empty(state, like):
    """Replaces Empty by the arrays of size 0 of another state."""
    return jax.tree.map(lambda x, y: y if _is_empty(x) else x, state, like, is_leaf=_is_empty)


def spread(tree, axes, num_devices: int):
    """Copies arrays to the devices of this process, as `parallelize` takes them: see there for `axes`.

    Arrays with the axis of the devices have only those of this process: see `own_shards`.
    """
    mesh = _local_mesh(num_devices)
    return _map_axes(lambda axis, x: jax.device_put(x, NamedSharding(mesh, _spec(axis))), axes, tree)


def own_shards(num_devices: int) -> slice:
    """The devices of this process among those of all."""
    if is_alone():
        return slice(0, num_devices)
    first = jax.process_index() * _count_own(num_devices)
    return slice(first, first + _count_own(num_devices))


def gather_shards(x) -> np.ndarray:
    """An array with the axis of the devices, of this process, as one of all processes, in host memory. Waits for all."""
    if is_alone() or not x.size:
        return np.zeros((x.shape[0] * jax.process_count(), *x.shape[1:]), x.dtype) if not x.size else np.asarray(x)
    from jax.experimental import multihost_utils

    return np.reshape(multihost_utils.process_allgather(np.asarray(x)), (-1, *x.shape[1:]))


def _is_empty(node) -> bool:
    return isinstance(node, Empty)


def ranks(num_devices: int) -> Int[Array, "D"]:
    """The number of each device."""
    return jnp.arange(num_devices, dtype=jnp.int32)


def count_devices(num_devices: int, views_per_step: int) -> int:
    """Number of devices that training uses, of all processes together.

    Args:
      num_devices: 0: as many as can share the views of a step.
      views_per_step: 0: one for each device.
    Raises:
      UserError: JAX finds no device, fewer than num_devices, or num_devices that cannot share the views; or processes with
        different numbers of devices.
    """
    available = _count_available()
    processes, where = jax.process_count(), "this machine has" if is_alone() else "all processes together have"
    if not num_devices:
        fitting = [num for num in range(processes, available + 1, processes) if views_per_step % num == 0]
        if not fitting:
            raise UserError(
                f"config.views_per_step is {views_per_step}, expected a multiple of {processes} processes, or 0: start fewer processes"
            )
        return max(fitting)
    if num_devices > available:
        raise UserError(f"config.num_devices is {num_devices}, but {where} {available}: 0 takes all")
    if num_devices % processes:
        raise UserError(f"config.num_devices is {num_devices}, expected a multiple of {processes} processes, or 0")
    if views_per_step % num_devices:
        raise UserError(
            f"config.views_per_step is {views_per_step}, expected a multiple of {num_devices} devices, or 0"
        )
    return num_devices


def _count_available() -> int:
    """Number of devices of all processes."""
    try:
        own = jax.local_device_count()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts that the platform of JAX_PLATFORMS is there
        raise UserError(
            f"JAX finds no device with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: unset it, or install what it needs "
            "(pip install 'bags-jax[gpu]', and the driver)"
        ) from error
    if is_alone():
        return own
    if jax.device_count() != own * jax.process_count():
        raise UserError(
            f"{jax.process_count()} processes have {jax.device_count()} devices, and process {jax.process_index()} has {own}: "
            "expected as many in each"
        )
    return jax.device_count()
