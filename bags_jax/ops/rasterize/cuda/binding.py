"""Rasterization of C cameras at once by CUDA kernels: differentiable, and vmap makes more cameras of it, not loops."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from bags_jax.ops.rasterize.cuda.binning import Pairs, bin_views, count_views
from bags_jax.ops.rasterize.cuda.blend import Image, Splats, blend_gradient, blend_views
from bags_jax.structs import Projected, RasterOutput


def over_cameras(function: Callable) -> Callable:
    """A function of arrays with a leading axis of cameras, for which vmap folds its own axis into that one."""
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def fold(axis_size: int, in_batched, *args):
        def into_one(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(axis_size * x.shape[1], *x.shape[2:])

        def apart(x):
            return x.reshape(axis_size, x.shape[0] // axis_size, *x.shape[1:])

        outputs = mapped(*jax.tree.map(into_one, args, tuple(in_batched)))
        return jax.tree.map(apart, outputs), jax.tree.map(lambda _: True, outputs)

    return mapped


@functools.cache
def _binner(width: int, height: int, room: int, with_slots: bool) -> Callable[..., Pairs]:
    return over_cameras(functools.partial(bin_views, width=width, height=height, room=room, with_slots=with_slots))


@functools.cache
def _counter(width: int, height: int) -> Callable[..., Int[Array, "C"]]:
    return over_cameras(functools.partial(count_views, width=width, height=height))


@functools.cache
def _blender(width: int, height: int) -> Callable[..., Image]:
    forward = over_cameras(functools.partial(blend_views, width=width, height=height))
    backward = over_cameras(blend_gradient)

    @jax.custom_vjp
    def blend(splats: Splats, pairs: Pairs) -> Image:
        return forward(splats, pairs)

    def blend_fwd(splats, pairs):
        image = forward(splats, pairs)
        return image, (splats, pairs, image)

    def blend_bwd(residuals, cotangent):
        return backward(*residuals, cotangent), None

    blend.defvjp(blend_fwd, blend_bwd)
    return blend


def rasterize_cuda(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int,
    max_intersections: int,
    deterministic: bool = False,
) -> RasterOutput:
    """Blends Gaussians front to back (Kerbl et al. 2023, eq. 3) with CUDA kernels; see `rasterize`.

    Under vmap over cameras all of them are worked on at once, each with room of its own.

    Args:
      projected, features, width, height, max_intersections: as for `rasterize`.
      tile_size: not looked at: tiles are 16 x 16 px.
      deterministic: gradients are summed in a fixed order, through a buffer of (6 + D) floats a pair; else by atomic
        additions, which differ in the last bits from run to run.
    Differentiable in means, conics, opacities and features.
    """
    del tile_size
    one = jax.tree.map(lambda x: x[None], projected)
    pairs = _binner(width, height, max_intersections, deterministic)(jax.lax.stop_gradient(one))
    splats = Splats(one.means_px, one.conics, one.opacities, features[None])
    image = _blender(width, height)(splats, pairs)
    return RasterOutput(
        colors=image.colors[0],
        alphas=image.alphas[0],
        num_intersections=pairs.num_intersections[0],
        num_dropped=pairs.num_dropped[0],
    )


def count_cuda(projected: Projected, *, width: int, height: int, tile_size: int) -> Int[Array, ""]:
    """Number of pairs that `rasterize_cuda` makes of an image, up to 2^31 - 1."""
    del tile_size
    return _counter(width, height)(jax.tree.map(lambda x: jax.lax.stop_gradient(x[None]), projected))[0]
