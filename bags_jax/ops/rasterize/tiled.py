"""Rasterizes with a function that blends tiles: binning and assembly in XLA, shared by the backends "xla" and "tpu"."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.rasterize.tiles import bin_tiles, grid_size
from bags_jax.structs import Projected, RasterOutput

GEOMETRY = 6  # leading columns of the attributes: x, y, xx, xy, yy, opacity


def rasterize_by(
    blend: Callable[..., Float[Array, "T E P"]],
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int,
    max_intersections: int,
) -> RasterOutput:
    """Rasterizes at least one Gaussian with a buffer for at least one intersection; arguments as for `rasterize`.

    Args:
      blend: (attributes [N 6+E], gaussian_ids, starts) -> sum of weight times feature per pixel of a tile, row-major.
    """
    tiles = bin_tiles(projected, width=width, height=height, tile_size=tile_size, max_intersections=max_intersections)
    geometry = [projected.means_px, projected.conics, projected.opacities[:, None]]
    # Opacity is the sum of the weights: one more channel, whose feature is 1.
    attributes = jnp.concatenate([*geometry, features, jnp.ones_like(features[:, :1])], axis=-1)
    blended = blend(attributes, tiles.gaussian_ids, tiles.starts)
    image = _untile(blended, width=width, height=height, tile_size=tile_size)
    return RasterOutput(
        colors=image[..., :-1],
        alphas=image[..., -1],
        num_intersections=tiles.num_intersections,
        num_dropped=tiles.num_dropped,
    )


def _untile(tiles: Float[Array, "T E P"], *, width: int, height: int, tile_size: int) -> Float[Array, "H W E"]:
    columns, rows = grid_size(width, height, tile_size)
    image = tiles.reshape(rows, columns, -1, tile_size, tile_size).transpose(0, 3, 1, 4, 2)
    return image.reshape(rows * tile_size, columns * tile_size, -1)[:height, :width]


def geometry_gradients(geometry: Sequence[Array], moments: Sequence[Array]) -> list[Array]:
    """Returns the gradients of the geometry of a Gaussian in one tile.

    Args:
      geometry: x, y, xx, xy, yy, opacity; the mean relative to the tile centre.
      moments: sums over pixels of dL/dsigma times 1, x, y, x^2, xy, y^2 about the tile centre.
    """
    x, y, xx, xy, yy, opacity = geometry
    m0, mx, my, mxx, mxy, myy = moments
    dx, dy = x * m0 - mx, y * m0 - my
    return [
        xx * dx + xy * dy,
        yy * dy + xy * dx,
        0.5 * (x * x * m0 - 2.0 * x * mx + mxx),
        x * y * m0 - x * my - y * mx + mxy,
        0.5 * (y * y * m0 - 2.0 * y * my + myy),
        -m0 / jnp.maximum(opacity, 1e-6),
    ]
