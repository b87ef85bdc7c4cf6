"""An image by tiles, binned and put together in XLA: what the backends share that differ only in how they blend a tile."""

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
    """`rasterize` by a function that blends tiles. At least one Gaussian, and room for at least one pair.

    Args:
      blend: (attributes [N 6+E], gaussian_ids, starts) -> sum of weight times feature for the pixels of each tile, row-major.
      the others: as for `rasterize`.
    """
    tiles = bin_tiles(projected, width=width, height=height, tile_size=tile_size, max_intersections=max_intersections)
    geometry = [projected.means_px, projected.conics, projected.opacities[:, None]]
    # Opacity, the sum of the weights, is one more channel whose feature is 1, so that it needs no rule of its own.
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
    """Gradients of a Gaussian's geometry in one tile.

    Args:
      geometry: x, y, xx, xy, yy, opacity, the mean about the tile centre.
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
