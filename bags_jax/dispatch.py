"""The compiled programs of training: one step for each stage and capacity, made ahead in the background where possible."""

import concurrent.futures
import dataclasses
import functools

import jax
import jax.numpy as jnp

from bags_jax import parallel
from bags_jax.geometry import smoothing_filter
from bags_jax.ops.rasterize import BACKENDS, DEFAULT_TILE_SIZE, bucket, choose_backend
from bags_jax.platforms import current_platform
from bags_jax.rendering import View, project_gaussians
from bags_jax.scene.density import densify_and_prune, reset_opacity
from bags_jax.step import Recipe, train_steps
from bags_jax.structs import Dataset, TrainState

HEADROOM = 1.25  # room for pairs of tile and Gaussian beyond those that the scene needs
HEADROOM_AHEAD = 2.0  # the same for a program that is compiled long before it is used


class Programs:
    """Compiled training steps by recipe and capacity; one that was not prepared is compiled when it is asked for."""

    def __init__(self, num_devices: int):
        self._num_devices = num_devices
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._futures: dict = {}
        self._in_use = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def prepare(self, recipe: Recipe, state: TrainState, dataset: Dataset) -> None:
        """Starts to compile the step of a recipe for states and datasets of these shapes, in the background."""
        key = _key(recipe, state, dataset)
        if key not in self._futures:
            shapes = jax.tree.map(_shape, (state, dataset))
            self._futures[key] = self._pool.submit(self._compile, recipe, *shapes)

    def steps(self, recipe: Recipe, state: TrainState, dataset: Dataset, start: int, stop: int):
        """Asks for the steps from start to stop, and waits for their program, not for them: (state, metrics). The state is donated.

        A program that nobody has begun to compile is compiled at once: it must not wait behind those of later stages.
        """
        key = _key(recipe, state, dataset)
        if key not in self._futures or self._futures[key].cancel():
            self._futures[key] = concurrent.futures.Future()
            self._futures[key].set_result(self._compile(recipe, *jax.tree.map(_shape, (state, dataset))))
        compiled = self._futures[key].result()
        if self._in_use not in (None, key):
            self._forget(self._in_use, capacity=state.alive.shape[0])
        self._in_use = key
        ranks, mapped = parallel.ranks(self._num_devices), parallel.without_empty(state)
        mapped, metrics = compiled(ranks, mapped, dataset, jnp.int32(start), jnp.int32(stop))
        return parallel.with_empty(mapped, state), metrics

    def _forget(self, left, *, capacity: int) -> None:
        """Drops the program that was left and those of smaller capacities: each holds hundreds of memory maps on a CPU, and
        training goes back to one only where a dispatch falls short just before the state grows."""
        for key in [key for key in self._futures if key == left or key[1] < capacity]:
            self._futures.pop(key).cancel()

    def _compile(self, recipe: Recipe, state, dataset):
        mapped = parallel.parallelize(
            functools.partial(train_steps, recipe=recipe), num_args=3, num_devices=self._num_devices
        )
        ranks, state = parallel.ranks(self._num_devices), parallel.without_empty(state)
        lowered = mapped.lower(ranks, state, dataset, jnp.int32(0), jnp.int32(1))
        return lowered.compile(compiler_options=compiler_options(recipe))


def compiler_options(recipe: Recipe) -> dict[str, bool | str]:
    """What XLA is told on a GPU.

    Matrices are multiplied by cuBLAS: XLA's own kernels are tried out at length when a program is compiled, and those of jax
    0.10.2 failed on some shapes of the network. In a deterministic step the convolutions, too, have to be the same to the last
    bit each time.
    """
    if current_platform() != "gpu":
        return {}
    in_fixed_order = {"xla_gpu_deterministic_ops": True} if recipe.view.deterministic else {}
    return {"xla_gpu_enable_triton_gemm": False, **in_fixed_order}


def _key(recipe: Recipe, state: TrainState, dataset: Dataset):
    return recipe, state.alive.shape[0], dataset.images.shape


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


@functools.partial(jax.jit, static_argnames="rules", donate_argnames="state")
def control_density(state: TrainState, step, key, grad_threshold, dataset: Dataset, *, rules) -> TrainState:
    """One turn of density control, and the 3D filter of what it leaves, if the state is at this step."""
    controlled = densify_and_prune(state, key, grad_threshold, extent=dataset.extent, rules=rules)
    return _if_at(step, _with_filter(controlled, dataset), state)


@functools.partial(jax.jit, donate_argnames="state")
def refresh_filter(state: TrainState, step, dataset: Dataset) -> TrainState:
    """The 3D filter for the cameras of the scale that is being trained, if the state is at this step."""
    return _if_at(step, _with_filter(state, dataset), state)


@functools.partial(jax.jit, donate_argnames="state")
def lower_opacity(state: TrainState, step) -> TrainState:
    """The opacities reset, if the state is at this step."""
    return _if_at(step, reset_opacity(state), state)


@jax.jit
def copied(state: TrainState) -> TrainState:
    """The state in memory of its own: what it is a copy of may be donated."""
    return jax.tree.map(jnp.copy, state)


def _if_at(step, new: TrainState, state: TrainState) -> TrainState:
    """What is asked of a state before it is known how far it has come: a dispatch may have ended at a step that was not ok."""
    return jax.tree.map(lambda a, b: jnp.where(state.step == step, a, b), new, state)


def _with_filter(state: TrainState, dataset: Dataset) -> TrainState:
    gaussians, cameras = state.gaussians, dataset.cameras
    filter_3d = smoothing_filter(gaussians.means, state.alive, cameras, dataset.sizes, near=dataset.near_plane)
    return dataclasses.replace(state, filter_3d=filter_3d)


@functools.partial(jax.jit, static_argnames="view")
def _largest_count(state: TrainState, dataset: Dataset, *, view: View):
    counter = BACKENDS[choose_backend(view.backend)].count

    def count(camera):
        projected = project_gaussians(state.gaussians, state.alive, state.filter_3d, camera, view)
        width, height = view.canvas
        return counter(projected, width=width, height=height, tile_size=DEFAULT_TILE_SIZE)

    return jnp.max(jax.lax.map(count, dataset.cameras))


def most_pairs(state: TrainState, dataset: Dataset, view: View) -> int:
    """Pairs of tile and Gaussian of the most demanding view of a dataset."""
    return int(_largest_count(state, dataset, view=view))


def more_room(room: int, pairs: int = 0) -> int:
    """The room that takes the place of one that is or will be too small, for at least so many pairs.

    Raises:
      UserError: there is no such room: see `bucket`.
    """
    while (room := bucket(int(HEADROOM * room) + 1)) < pairs:
        pass
    return room


def room_for(pairs: int, *, headroom: float = HEADROOM) -> int:
    """Room for some pairs of tile and Gaussian, and for more of them to come. Raises as `bucket`."""
    return bucket(int(headroom * pairs))
