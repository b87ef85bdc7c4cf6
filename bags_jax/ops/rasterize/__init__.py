"""`rasterize`: blends N projected Gaussians with features into one image."""

import functools
import os
import warnings
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from bags_jax.errors import UserError
from bags_jax.ops.backends import choose
from bags_jax.ops.rasterize import xla
from bags_jax.ops.rasterize.cpu import binding as cpu_binding
from bags_jax.ops.rasterize.cuda import binding as cuda_binding
from bags_jax.ops.rasterize.tiles import default_tile_size, grid_size
from bags_jax.platforms import current_platform, follows_arrays
from bags_jax.structs import Projected, RasterOutput

MAX_BUFFER = 7 * 2**28  # largest buffer size: below the limit of int32, with some distance
GUESS = 16  # intersections per Gaussian that a buffer holds where none can be counted


@runtime_checkable
class Implementation(Protocol):
    """Functions of the module of a backend. Both are pure and may be traced."""

    def rasterize(
        self,
        projected: Projected,
        features: Float[Array, "N D"],
        *,
        width: int,
        height: int,
        tile_size: int,
        max_intersections: int,
    ) -> RasterOutput:
        """Rasterizes at least one Gaussian, with a buffer for at least one intersection."""
        ...

    def count_intersections(self, projected: Projected, *, width: int, height: int, tile_size: int) -> Int[Array, ""]:
        """Counts the intersections that `rasterize` makes."""
        ...


def _implementation(name: str) -> Implementation:
    if name == "tpu":
        from bags_jax.ops.rasterize.tpu import binding as tpu_binding  # imports Pallas, which is slow

        return tpu_binding
    if name == "cuda":
        return cuda_binding
    return cpu_binding if name == "cpu" else xla


def _resolve(backend: str, width: int, height: int, tile_size: int | None) -> tuple[str, dict[str, int]]:
    """Returns the name of the backend and the sizes. Raises ValueError for an empty image or tile."""
    name = choose("rasterize", backend)
    tile_size = default_tile_size(name) if tile_size is None else tile_size
    grid_size(width, height, tile_size)
    return name, {"width": width, "height": height, "tile_size": tile_size}


def batches_cameras(backend: str = "auto") -> bool:
    """Returns whether vmap over cameras makes one batched call. Otherwise jax.lax.map over cameras is faster."""
    return choose("rasterize", backend) == "cuda"


@follows_arrays
def rasterize(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int | None = None,
    max_intersections: int | None = None,
    backend: str = "auto",
    deterministic: bool = False,
) -> RasterOutput:
    """Blends Gaussians front to back (Kerbl et al. 2023, eq. 3), by tiles, in float32.

    Alpha is clamped at 0.999 and skipped under 1/255; a pixel stops before the Gaussian that would lower its
    transmittance to 1e-4 or below.

    Args:
      projected: N Gaussians on the screen of one camera, as `project` returns them.
      features: values to blend (colour, depth, ...), D channels.
      width, height: image size, px.
      tile_size: side of a tile, px. None: 8 for "cpu" and "xla", which take any; "cuda" and "tpu" only have 16.
      max_intersections: buffer size for intersections of tiles and Gaussians. None: outside jit they are counted; under
        jit the buffer holds 16 per Gaussian.
      backend: "cpu" is C++, compiled at first use; "cuda" is for NVIDIA GPUs of compute capability 8.0 or newer; "tpu"
        is Pallas; "xla" runs everywhere; "auto" takes the best of this machine (ops/backends.py).
      deterministic: sum gradients in a fixed order. "cuda" needs more time for it, and 40 bytes or more per
        intersection. "cpu", "tpu", and "xla" on a CPU or a TPU always do. "xla" on a GPU does only in programs
        compiled with XLA_FLAGS=--xla_gpu_deterministic_ops=true.
    Returns:
      RasterOutput. num_dropped > 0: the buffer was too small and the image is wrong.
    Raises:
      ValueError: an empty image, an empty or too large buffer, a tile size that the backend has no code for, or a
        backend that is unknown or that this machine cannot run.
    Differentiable in means, conics, opacities and features.
    """
    name, size = _resolve(backend, width, height, tile_size)
    if max_intersections is not None and not 1 <= max_intersections <= MAX_BUFFER:
        raise UserError(
            f"max_intersections={max_intersections} came, expected 1 to {MAX_BUFFER}, or None to count intersections"
        )
    projected, features = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (projected, features))
    if features.shape[0] == 0:
        empty = jnp.zeros((height, width, features.shape[1]))
        return RasterOutput(empty, jnp.zeros((height, width)), jnp.int32(0), jnp.int32(0))
    if max_intersections is None:
        max_intersections = measure_buffer(projected, **size, backend=name)
    if deterministic and name == "cuda":
        return cuda_binding.rasterize(
            projected, features, **size, max_intersections=max_intersections, deterministic=True
        )
    if deterministic and name == "xla" and current_platform() == "gpu":
        _check_xla_is_deterministic()
    return _implementation(name).rasterize(projected, features, **size, max_intersections=max_intersections)


@functools.cache
def _check_xla_is_deterministic() -> None:
    if "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        warnings.warn(
            "bags_jax: deterministic=True with backend='xla' on a GPU needs a program compiled with "
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true",
            stacklevel=4,
        )


def count_intersections(
    projected: Projected, *, width: int, height: int, tile_size: int | None = None, backend: str = "auto"
) -> Int[Array, ""]:
    """Counts the intersections of tiles and Gaussians that `rasterize` makes, up to 2^31 - 1. May be traced."""
    name, size = _resolve(backend, width, height, tile_size)
    return _implementation(name).count_intersections(projected, **size)


_count_intersections = jax.jit(count_intersections, static_argnames=("width", "height", "tile_size", "backend"))


def measure_buffer(
    projected: Projected, *, width: int, height: int, tile_size: int | None = None, backend: str = "auto"
) -> int:
    """Returns a buffer size that holds all intersections.

    Under jit, where intersections cannot be counted, warns and returns the size for 16 per Gaussian.
    """
    name, size = _resolve(backend, width, height, tile_size)  # before jit, which would cache the meaning of "auto"
    projected = jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)), projected)
    if isinstance(projected.means_px, Tracer):
        warnings.warn(
            f"intersections of tiles and Gaussians cannot be counted under jit, the buffer holds {GUESS} per Gaussian: "
            "pass max_intersections and check num_dropped",
            stacklevel=4,
        )
        return buffer_size(GUESS * projected.depths.shape[0])
    return buffer_size(int(_count_intersections(projected, **size, backend=name)))


def buffer_size(count: int) -> int:
    """Returns the smallest 2^k times 1, 1.25, 1.5 or 1.75 that holds `count` intersections.

    Few different sizes mean few compiled programs.

    Raises:
      UserError: more than MAX_BUFFER.
    """
    step = max((1 << max(count - 1, 0).bit_length()) // 8, 1024)
    size = -(-max(count, 1) // step) * step
    if size > MAX_BUFFER:
        raise UserError(
            f"{count} intersections of tiles and Gaussians in one image came, expected at most {MAX_BUFFER}: "
            "take smaller images (config.data.factor), or fewer or smaller Gaussians"
        )
    return size
