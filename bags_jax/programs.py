"""The compiled programs of training: one for each stage, capacity and buffer size, compiled ahead in the background."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bags_jax import parallel
from bags_jax.geometry import smoothing_filter
from bags_jax.ops.rasterize import count_intersections
from bags_jax.platforms import count_cores, current_platform
from bags_jax.rendering import View, project_gaussians
from bags_jax.scene.density import Thresholds, densify_and_prune, reset_opacity
from bags_jax.scene.rows import row_axes
from bags_jax.shards import WHOLE, Shards
from bags_jax.step import Recipe, is_finite, train_steps
from bags_jax.structs import Dataset, TrainState

LARGEST_INT = jnp.iinfo(jnp.int32).max


class Programs:
    """Compiled training steps by recipe and shapes. A step that was not prepared is compiled when it is called.

    Attributes:
      num_devices: devices that all steps are mapped over.
    """

    def __init__(self, num_devices: int):
        self.num_devices = num_devices
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=count_compilers())
        self._futures: dict = {}
        self._in_use = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def prepare(self, recipe: Recipe, state: TrainState, dataset: Dataset) -> None:
        """Starts to compile the step of a recipe for a state and a dataset of these shapes, in the background."""
        key = _key(recipe, state, dataset)
        if key not in self._futures:
            shapes = jax.tree.map(_shape, (state, dataset))
            self._futures[key] = self._pool.submit(self._compile, recipe, *shapes)

    def steps(self, recipe: Recipe, state: TrainState, dataset: Dataset, start: int, stop: int):
        """Queues the steps from start to stop: (state, metrics). Waits for their program only. The state is donated.

        A program whose compilation has not begun is compiled at once, so that it does not wait behind those of later stages.
        """
        key = _key(recipe, state, dataset)
        if key not in self._futures or self._futures[key].cancel():
            self._futures[key] = concurrent.futures.Future()
            self._futures[key].set_result(self._compile(recipe, *jax.tree.map(_shape, (state, dataset))))
        compiled = self._futures[key].result()
        if self._in_use not in (None, key):
            self._forget(self._in_use, capacity=state.alive.shape[-1])
        self._in_use = key
        ranks, mapped = parallel.ranks(self.num_devices), parallel.without_empty(state)
        mapped, metrics = compiled(ranks, mapped, dataset, jnp.int32(start), jnp.int32(stop))
        return parallel.with_empty(mapped, state), metrics

    def cancel(self) -> None:
        """Drops the programs whose compilation has not begun: their shapes will not come."""
        for key in [key for key, future in self._futures.items() if future.cancel()]:
            del self._futures[key]

    def _forget(self, left, *, capacity: int) -> None:
        """Drops the program that was used last and those of smaller capacities: each holds hundreds of memory maps on a CPU.

        Training returns to one only where a dispatch falls short just before the state grows.
        """
        for key in [key for key in self._futures if key == left or key[1] < capacity]:
            self._futures.pop(key).cancel()

    def _compile(self, recipe: Recipe, state, dataset):
        ranks, state = parallel.ranks(self.num_devices), parallel.without_empty(state)
        mapped = parallel.parallelize(
            functools.partial(train_steps, recipe=recipe),
            num_args=3,
            num_devices=self.num_devices,
            num_shards=recipe.shards.num,
            axes=row_axes(state) if recipe.shards.are_split else None,
        )
        lowered = mapped.lower(ranks, state, dataset, jnp.int32(0), jnp.int32(1))
        return lowered.compile(compiler_options=compiler_options(recipe))


def count_compilers() -> int:
    """Number of programs to compile at the same time: one where the steps need the CPU, else one for every four cores."""
    return 1 if current_platform() == "cpu" else max(1, count_cores() // 4)


def compiler_options(recipe: Recipe) -> dict[str, bool | str]:
    """Options of XLA on a GPU.

    cuBLAS multiplies matrices: compiling would try XLA's own kernels at length, and those of jax 0.10.2 failed on some shapes of
    the network. A deterministic step needs deterministic convolutions too.
    """
    if current_platform() != "gpu":
        return {}
    in_fixed_order = {"xla_gpu_deterministic_ops": True} if recipe.view.deterministic else {}
    return {"xla_gpu_enable_triton_gemm": False, **in_fixed_order}


def _key(recipe: Recipe, state: TrainState, dataset: Dataset):
    return recipe, state.alive.shape[-1], dataset.images.shape


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def apply(operation: Callable, state: TrainState, *args: Any, shards: Shards = WHOLE, **static: Any) -> TrainState:
    """Applies control_density, refresh_filter or lower_opacity: to a whole state, or on each device to its rows of a split one."""
    if not shards.are_split:
        return operation(state, *args, **static)
    keys = tuple(isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in args)
    mapped = _map_operation(operation, keys, shards, tuple(sorted(static.items())), _structure(state))
    plain = [jax.random.key_data(x) if is_key else x for x, is_key in zip(args, keys, strict=True)]
    new, _ = mapped(parallel.ranks(shards.num), parallel.without_empty(state), *plain)
    return parallel.with_empty(new, state)


@functools.cache
def _map_operation(operation: Any, keys: tuple[bool, ...], shards: Shards, static: tuple, structure: "_Structure"):
    """An operation on split states of a structure; `keys` says which of its arguments are random keys, that come as numbers."""

    def step(_, state, *args):
        args = [jax.random.wrap_key_data(x) if is_key else x for x, is_key in zip(args, keys, strict=True)]
        return operation.__wrapped__(state, *args, shards=shards, **dict(static)), {}

    return parallel.parallelize(
        step, num_args=len(keys), num_devices=shards.num, num_shards=shards.num, axes=structure.row_axes()
    )


@dataclasses.dataclass(frozen=True)
class _Structure:
    """Shapes of a split state without empty arrays; hashable."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]

    def row_axes(self):
        return row_axes(self.tree.unflatten([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes]))


def _structure(state: TrainState) -> _Structure:
    leaves, tree = jax.tree.flatten(parallel.without_empty(state))
    return _Structure(tree, tuple(x.shape for x in leaves))


@functools.partial(jax.jit, donate_argnames="state", static_argnames=("shards", "max_rows"))
def control_density(
    state: TrainState,
    step,
    key,
    thresholds: Thresholds,
    dataset: Dataset,
    *,
    shards: Shards = WHOLE,
    max_rows: int | None = None,
) -> TrainState:
    """One density control step and the new 3D filter, if the state is at this step."""
    controlled = densify_and_prune(state, key, thresholds, extent=dataset.extent, shards=shards, max_rows=max_rows)
    return _if_at(step, _with_filter(controlled, dataset, shards), state)


@functools.partial(jax.jit, donate_argnames="state", static_argnames="shards")
def refresh_filter(state: TrainState, step, dataset: Dataset, *, shards: Shards = WHOLE) -> TrainState:
    """Updates the 3D filter for the cameras of the current scale, if the state is at this step."""
    return _if_at(step, _with_filter(state, dataset, shards), state)


@functools.partial(jax.jit, donate_argnames="state", static_argnames="shards")
def lower_opacity(state: TrainState, step, *, shards: Shards = WHOLE) -> TrainState:
    """Resets the opacities, if the state is at this step."""
    return _if_at(step, reset_opacity(state), state)


@jax.jit
def copy_state(state: TrainState) -> TrainState:
    """Copies the state into new memory, so that the original may be donated."""
    return jax.tree.map(jnp.copy, state)


def _if_at(step, new: TrainState, state: TrainState) -> TrainState:
    """The new state if the old one is at `step`, else the old one: a dispatch may have ended early, at a step that was not ok."""
    return jax.tree.map(lambda a, b: jnp.where(state.step == step, a, b), new, state)


def _with_filter(state: TrainState, dataset: Dataset, shards: Shards) -> TrainState:
    where = state.gaussians.means, state.alive, dataset.cameras, dataset.sizes
    filter_3d = smoothing_filter(*where, near=dataset.near_plane, largest_of_all=shards.largest)
    return dataclasses.replace(state, filter_3d=filter_3d)


@functools.partial(jax.jit, static_argnames="view")
def _largest_count(state: TrainState, dataset: Dataset, *, view: View):
    width, height, *_ = view.canvas

    def count(camera):
        projected = project_gaussians(state.gaussians, state.alive, state.filter_3d, camera, view)
        return count_intersections(projected, width=width, height=height, backend=view.backend)

    return jnp.max(jax.lax.map(count, dataset.cameras))


def survey(state: TrainState, shards: Shards = WHOLE) -> dict[str, Array]:
    """What the host wants to know of a state: num_gaussians and is_finite."""
    if not shards.are_split:
        return {"num_gaussians": jnp.sum(state.alive), "is_finite": is_finite(state)}
    return _map_survey(shards, _structure(state))(parallel.without_empty(state))


@functools.cache
def _map_survey(shards: Shards, structure: _Structure) -> Callable:
    def look(state):
        return {"num_gaussians": shards.sum(jnp.sum(state.alive)), "is_finite": shards.all(is_finite(state))}

    return parallel.measure(look, num_args=0, num_devices=shards.num, num_shards=shards.num, axes=structure.row_axes())


def largest_count(state: TrainState, dataset: Dataset, view: View) -> int:
    """Number of intersections of tiles and Gaussians in the most demanding view of a dataset."""
    return int(_largest_count(state, dataset, view=view))


def largest_counts(state: TrainState, dataset: Dataset, view: View, shards: Shards) -> tuple[int, int]:
    """The same for a split state, and the largest number of Gaussians of one device that are visible in one view."""
    count = _map_counts(view, shards, _structure(state))
    found = count(parallel.without_empty(state), dataset)
    return int(found[0]), int(found[1])


@functools.cache
def _map_counts(view: View, shards: Shards, structure: _Structure) -> Callable:
    width, height, *_ = view.canvas

    def count_all(state, dataset):
        def count(camera):
            projected = project_gaussians(state.gaussians, state.alive, state.filter_3d, camera, view)
            num = count_intersections(projected, width=width, height=height, backend=view.backend)
            # No sum over devices exceeds int32.
            return jnp.minimum(num, LARGEST_INT // shards.num), jnp.sum(projected.radii_px[:, 0] > 0)

        intersections, visible = jax.lax.map(count, dataset.cameras)
        return jnp.max(shards.sum(intersections)), shards.largest(jnp.max(visible))

    return parallel.measure(
        count_all, num_args=1, num_devices=shards.num, num_shards=shards.num, axes=structure.row_axes()
    )
