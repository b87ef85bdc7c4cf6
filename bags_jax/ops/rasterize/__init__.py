"""`rasterize`: N projected Gaussians with features become one image, by one of several backends."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from bags_jax.errors import UserError
from bags_jax.ops.rasterize import cuda, tpu
from bags_jax.ops.rasterize.cpu.binding import count_pairs, rasterize_native
from bags_jax.ops.rasterize.tiles import count_intersections, grid_size
from bags_jax.ops.rasterize.xla import rasterize_xla
from bags_jax.ops.toolchain import cpp_build
from bags_jax.platforms import current_platform, follows_arrays
from bags_jax.structs import Projected, RasterOutput

DEFAULT_TILE_SIZE = 8
MOST_ROOM = 7 * 2**28  # the largest bucket that int32 can count, with some distance


def _always() -> bool:
    return True


class Backend(NamedTuple):
    """One way to rasterize; `rasterize` and `count` are pure and may be traced."""

    rasterize: Callable[..., RasterOutput]  # (projected, features, *, width, height, tile_size, max_intersections)
    count: Callable[..., Array]  # (projected, *, width, height, tile_size) -> pairs that it will make
    platform: str = ""  # that it is for; all
    is_available: Callable[[], bool] = _always  # on that platform; says once why not
    require: Callable[[], Any] = _always  # raises where this machine lacks it
    together: bool = False  # vmap over cameras makes one batch of them; else they are better taken one after the other
    in_fixed_order: Callable[..., RasterOutput] | None = None  # rasterize with deterministic gradients; None: it is so


# The best first.
BACKENDS = {
    "cpu": Backend(rasterize_native, count_pairs, "cpu", cpp_build.is_available, cpp_build.require),
    "cuda": Backend(
        cuda.rasterize_cuda,
        cuda.count_cuda,
        "gpu",
        cuda.is_available,
        cuda.require,
        together=True,
        in_fixed_order=functools.partial(cuda.rasterize_cuda, deterministic=True),
    ),
    "tpu": Backend(tpu.rasterize_tpu, tpu.count_tpu, "tpu", tpu.is_available, tpu.require),
    "xla": Backend(rasterize_xla, count_intersections),
}


def choose_backend(backend: str) -> str:
    """The key of BACKENDS that a caller's `backend` stands for.

    Raises:
      ValueError: an unknown backend, or one that this machine lacks.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend={backend!r} came, expected one of {', '.join(('auto', *BACKENDS))}")
    if backend != "auto":
        BACKENDS[backend].require()
        return backend
    here = (name for name, b in BACKENDS.items() if b.platform in ("", current_platform()) and b.is_available())
    return next(here)


def bucket(count: int) -> int:
    """The next of 2^k times 1, 1.25, 1.5 or 1.75: capacities come in few sizes, so that few programs are compiled.

    Raises:
      UserError: more than MOST_ROOM.
    """
    step = max((1 << max(count - 1, 0).bit_length()) // 8, 1024)
    room = -(-max(count, 1) // step) * step
    if room > MOST_ROOM:
        raise UserError(
            f"room for {count} pairs of tile and Gaussian of one picture came, expected at most {MOST_ROOM}: take smaller"
            " pictures (config.data.factor), or fewer or smaller Gaussians"
        )
    return room


@follows_arrays
def rasterize(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int = DEFAULT_TILE_SIZE,
    max_intersections: int | None = None,
    backend: str = "auto",
    deterministic: bool = False,
) -> RasterOutput:
    """Blends Gaussians front to back (Kerbl et al. 2023, eq. 3), by tiles, in float32.

    Alpha is clamped at 0.999 and skipped under 1/255; a pixel stops before the Gaussian that would take its
    transmittance to 1e-4 or below.

    Args:
      projected: N Gaussians on the screen of one camera, as `project` gives them.
      features: what is blended (colour, depth, ...), D channels.
      width, height: image size, px.
      tile_size: side of a tile, px; "cuda" and "tpu" always have tiles of 16 px.
      max_intersections: room for pairs of tile and Gaussian. None: outside jit as many as there are, under jit a guess.
      backend: "xla" runs everywhere; "cpu" is C++, built at first use by the system's compiler; "cuda" is
        for NVIDIA GPUs of compute capability 8.0 and newer; "tpu" is Pallas; "auto" takes the best there is.
      deterministic: "cuda" adds gradients up in a fixed order, at the price of time and of 40 bytes and more a pair. A
        CPU always does; XLA on a GPU with XLA_FLAGS=--xla_gpu_deterministic_ops=true.
    Returns:
      RasterOutput; num_dropped > 0 says that the room was too small and the image is wrong.
    Raises:
      ValueError: an empty image, no room, or a backend that is unknown or that this machine lacks.
    Differentiable in means, conics, opacities and features.
    """
    grid_size(width, height, tile_size)  # raises where there is nothing to draw on
    backend = choose_backend(backend)
    if max_intersections is not None and not 1 <= max_intersections <= MOST_ROOM:
        raise UserError(
            f"max_intersections={max_intersections} came, expected 1 to {MOST_ROOM}: None makes room for all pairs"
        )
    projected, features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (projected, features))
    if features.shape[0] == 0:
        empty = jnp.zeros((height, width, features.shape[1]))
        return RasterOutput(empty, jnp.zeros((height, width)), jnp.int32(0), jnp.int32(0))
    size = {"width": width, "height": height, "tile_size": tile_size}
    if max_intersections is None:
        max_intersections = room_for_all(projected, **size, backend=backend)
    draw = (deterministic and BACKENDS[backend].in_fixed_order) or BACKENDS[backend].rasterize
    return draw(projected, features, **size, max_intersections=max_intersections)


_counters = {
    name: jax.jit(backend.count, static_argnames=("width", "height", "tile_size")) for name, backend in BACKENDS.items()
}


def room_for_all(
    projected: Projected, *, width: int, height: int, tile_size: int = DEFAULT_TILE_SIZE, backend: str = "auto"
) -> int:
    """Room that holds every pair of tile and Gaussian; under jit, where nothing can be counted, 16 for each Gaussian."""
    grid_size(width, height, tile_size)  # raises where there is nothing to draw on
    projected = jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)), projected)
    if isinstance(projected.means_px, Tracer):
        warnings.warn(
            "under jit no pairs of tile and Gaussian are counted, and room for 16 a Gaussian is made: pass max_intersections, "
            "and look at num_dropped",
            stacklevel=4,
        )
        return bucket(16 * projected.depths.shape[0])
    count = _counters[choose_backend(backend)]
    return bucket(int(count(projected, width=width, height=height, tile_size=tile_size)))
