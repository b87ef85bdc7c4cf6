"""The CUDA rasterizer as pure, differentiable functions. vmap adds cameras to one batched call instead of a loop."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from bags_jax.ops.limits import TILE
from bags_jax.ops.rasterize.cuda.binning import Intersections, bin_views, count_views
from bags_jax.ops.rasterize.cuda.blend import Image, Splats, blend_gradient, blend_views
from bags_jax.ops.rasterize.tiles import check_tile_size
from bags_jax.structs import Projected, RasterOutput


def over_cameras(function: Callable) -> Callable:
    """Wraps a function of arrays with a leading axis of cameras: vmap folds its own axis into that axis."""
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def fold(axis_size: int, in_batched, *args):
        def fold_axis(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(axis_size * x.shape[1], *x.shape[2:])

        def unfold_axis(x):
            return x.reshape(axis_size, x.shape[0] // axis_size, *x.shape[1:])

        outputs = mapped(*jax.tree.map(fold_axis, args, tuple(in_batched)))
        return jax.tree.map(unfold_axis, outputs), jax.tree.map(lambda _: True, outputs)

    return mapped


@functools.cache
def _binner(width: int, height: int, capacity: int, with_slots: bool) -> Callable[..., Intersections]:
    return over_cameras(
        functools.partial(bin_views, width=width, height=height, capacity=capacity, with_slots=with_slots)
    )


@functools.cache
def _counter(width: int, height: int) -> Callable[..., Int[Array, "C"]]:
    return over_cameras(functools.partial(count_views, width=width, height=height))


@functools.cache
def _blender(width: int, height: int) -> Callable[..., Image]:
    forward = over_cameras(functools.partial(blend_views, width=width, height=height))
    backward = over_cameras(blend_gradient)

    @jax.custom_vjp
    def blend(splats: Splats, intersections: Intersections) -> Image:
        return forward(splats, intersections)

    def blend_fwd(splats, intersections):
        image = forward(splats, intersections)
        return image, (splats, intersections, image)

    def blend_bwd(residuals, cotangent):
        return backward(*residuals, cotangent), None

    blend.defvjp(blend_fwd, blend_bwd)
    return blend


def rasterize(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int = TILE,
    max_intersections: int,
    deterministic: bool = False,
) -> RasterOutput:
    """Rasterizes at least one Gaussian, with a buffer for at least one intersection.

    Under vmap over cameras one call handles all cameras, each with a buffer of its own.

    Args:
      deterministic: sum gradients in a fixed order, through a buffer of 6 + D floats per intersection. False: sum by
        atomic additions, whose last bits differ from run to run.
      The others: as for `ops.rasterize.rasterize`.
    Raises:
      UserError: a tile size other than 16 px.
    Differentiable in means, conics, opacities and features.
    """
    check_tile_size(tile_size, "cuda")
    one = jax.tree.map(lambda x: x[None], projected)
    intersections = _binner(width, height, max_intersections, deterministic)(jax.lax.stop_gradient(one))
    splats = Splats(one.means_px, one.conics, one.opacities, features[None])
    image = _blender(width, height)(splats, intersections)
    return RasterOutput(
        colors=image.colors[0],
        alphas=image.alphas[0],
        num_intersections=intersections.num_intersections[0],
        num_dropped=intersections.num_dropped[0],
    )


def count_intersections(projected: Projected, *, width: int, height: int, tile_size: int = TILE) -> Int[Array, ""]:
    """Counts the intersections that `rasterize` makes, up to 2^31 - 1."""
    check_tile_size(tile_size, "cuda")
    return _counter(width, height)(jax.tree.map(lambda x: jax.lax.stop_gradient(x[None]), projected))[0]
