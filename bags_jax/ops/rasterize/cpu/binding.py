"""The C++ rasterizer of this folder as pure, differentiable functions."""

import dataclasses
import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bags_jax.ops.limits import CHANNELS
from bags_jax.ops.rasterize.channels import channel_groups, pad_channels
from bags_jax.ops.rasterize.tiles import grid_size
from bags_jax.ops.toolchain import cpp_build
from bags_jax.structs import Projected, RasterOutput

RECORD = 8 + max(CHANNELS)  # floats of struct Record (blend.h), which the backward pass reads again
MOMENTS = 6  # sums of an intersection in the backward pass, beside the sums of its features


@dataclasses.dataclass(frozen=True)
class Frame:
    """Static sizes: image and side of a tile, px."""

    width: int
    height: int
    tile_size: int

    def attributes(self) -> dict[str, np.int32]:
        return {name: np.int32(value) for name, value in dataclasses.asdict(self).items()}


class Bins(NamedTuple):
    """Intersections sorted by tile, front to back within a tile. A slot is the place when sorted by Gaussian."""

    gaussian_ids: Int[Array, "M"]  # arbitrary behind the last intersection, like slots
    slots: Int[Array, "M"]
    starts: Int[Array, "S"]  # S = T + 1: tile t owns the intersections starts[t] : starts[t + 1]
    spans: Int[Array, "N 2"]  # first slot of a Gaussian, and the slot after its last one
    totals: Int[Array, "2"]  # number of intersections, dropped ones included; number of dropped ones


def _call(target: str, frame: Frame, results: tuple, *arrays) -> list[Array]:
    """Calls a pure C++ function; under vmap once per element."""
    call = jax.ffi.ffi_call(target, results, vmap_method="sequential")
    return list(call(*arrays, **frame.attributes()))


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _screen(projected: Projected):
    projected = jax.lax.stop_gradient(projected)
    return projected.means_px, projected.covs_px, projected.radii_px, projected.depths


def count_intersections(projected: Projected, *, width: int, height: int, tile_size: int) -> Int[Array, ""]:
    """Counts the intersections that `bin_intersections` lists, up to 2^31 - 1."""
    grid_size(width, height, tile_size)  # raises for an empty image or tile
    cpp_build.require()
    return _call("bags_jax_count", Frame(width, height, tile_size), (_ints(1),), *_screen(projected))[0][0]


def bin_intersections(projected: Projected, *, width: int, height: int, tile_size: int, max_intersections: int) -> Bins:
    """Lists, for each tile, the Gaussians visible in it, front to back, by the rules of tiles.py.

    Args:
      projected: N Gaussians on the screen of one camera.
      width, height: image size, px.
      tile_size: side of a tile, px.
      max_intersections: buffer size. The intersections farthest back are dropped and counted if they do not fit.
    """
    columns, rows = grid_size(width, height, tile_size)
    cpp_build.require()
    results = (
        _ints(max_intersections),
        _ints(max_intersections),
        _ints(columns * rows + 1),
        _ints(projected.depths.shape[0], 2),
        _ints(2),
    )
    return Bins(*_call("bags_jax_bin", Frame(width, height, tile_size), results, *_screen(projected)))


def _forward(means, conics, opacities, features, bins: Bins, frame: Frame):
    results = (
        _floats(frame.height, frame.width, features.shape[1]),
        _floats(frame.height, frame.width),
        _floats(features.shape[0], RECORD),
    )
    arrays = means, conics, opacities, features, bins.gaussian_ids, bins.starts
    return _call("bags_jax_blend", frame, results, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def blend(
    means: Float[Array, "N 2"],
    conics: Float[Array, "N 3"],
    opacities: Float[Array, "N"],
    features: Float[Array, "N D"],
    bins: Bins,
    frame: Frame,
) -> tuple[Float[Array, "H W D"], Float[Array, "H W"]]:
    """Blends the Gaussians of each tile front to back (Kerbl et al. 2023, eq. 3). Returns colours and alphas.

    Args:
      means, conics, opacities: px, 1/px^2, [0, 1].
      features: D is one of limits.CHANNELS.
      bins: intersections of tiles and Gaussians.
      frame: static sizes.
    Differentiable in the first four.
    """
    colors, alphas, _ = _forward(means, conics, opacities, features, bins, frame)
    return colors, alphas


def _blend_fwd(means, conics, opacities, features, bins, frame):
    colors, alphas, records = _forward(means, conics, opacities, features, bins, frame)
    return (colors, alphas), (records, conics, bins, colors, alphas)


def _blend_bwd(frame, residuals, cotangents):
    records, conics, bins, colors, alphas = residuals
    num, channels = conics.shape[0], colors.shape[-1]
    results = (
        _floats(num, 2),
        _floats(num, 3),
        _floats(num),
        _floats(num, channels),
        _floats(bins.slots.shape[0], MOMENTS + channels),  # scratch memory
    )
    lists = bins.gaussian_ids, bins.slots, bins.starts, bins.spans
    arrays = records, conics, *lists, colors, alphas, *cotangents
    *gradients, _ = _call("bags_jax_blend_gradient", frame, results, *arrays)
    return *gradients, None


blend.defvjp(_blend_fwd, _blend_bwd)


def _blend_any(geometry, features: Float[Array, "N D"], bins: Bins, frame: Frame):
    """`blend` for any number of channels."""
    groups, alphas = [], jnp.zeros((frame.height, frame.width), jnp.float32)
    for first, end, channels in channel_groups(features.shape[1]):
        padded = pad_channels(features[:, first:end], channels)
        colors, group_alphas = cast(tuple[Array, Array], blend(*geometry, padded, bins, frame))
        groups.append(colors[..., : end - first])
        alphas = group_alphas if first == 0 else alphas  # the same in every group
    return jnp.concatenate(groups, axis=-1) if len(groups) > 1 else groups[0], alphas


def rasterize(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int,
    max_intersections: int,
) -> RasterOutput:
    """Rasterizes at least one Gaussian on a CPU, with a buffer for at least one intersection.

    Raises:
      UserError: the C++ cannot be used on this machine.
    """
    frame = Frame(width, height, tile_size)
    bins = bin_intersections(projected, **dataclasses.asdict(frame), max_intersections=max_intersections)
    geometry = projected.means_px, projected.conics, projected.opacities
    colors, alphas = _blend_any(geometry, features, bins, frame)
    return RasterOutput(colors, alphas, num_intersections=bins.totals[0], num_dropped=bins.totals[1])
