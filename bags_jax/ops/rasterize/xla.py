"""Front-to-back blending in plain XLA, with a custom gradient that stores no lists per pixel.

Tiles with lists of similar length form a batch. A while loop walks down the lists of one batch, a few Gaussians per
iteration, and ends when no pixel of the batch has transmittance left. The backward pass repeats the walk and updates a
running remainder, the part of the image that is still to come:

  dL/dalpha_i = T_i (c_i . g) - (sum over j > i of w_j c_j . g) / (1 - alpha_i),    w_i = T_i alpha_i

The gradients of mean and conic are moments of one scalar per pixel against [1, x, y, x^2, xy, y^2], relative to the
tile centre.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.numerics import EXACT
from bags_jax.ops.limits import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from bags_jax.ops.rasterize.tiled import GEOMETRY, geometry_gradients, rasterize_by
from bags_jax.ops.rasterize.tiles import count_intersections, grid_size
from bags_jax.platforms import current_platform
from bags_jax.structs import Projected, RasterOutput

__all__ = ["TileGrid", "blend", "count_intersections", "rasterize"]


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """Static sizes: image and tile in px, tiles per batch, Gaussians per loop iteration."""

    width: int
    height: int
    tile_size: int
    batch: int
    unroll: int

    @property
    def columns(self) -> int:
        return grid_size(self.width, self.height, self.tile_size)[0]

    @property
    def num_tiles(self) -> int:
        columns, rows = grid_size(self.width, self.height, self.tile_size)
        return columns * rows

    @property
    def pixels(self) -> int:
        return self.tile_size * self.tile_size


class _Batch(NamedTuple):
    """B tiles that one loop blends."""

    starts: Int[Array, "B"]
    lengths: Int[Array, "B"]
    centers: Float[Array, "B 2"]


def _local_pixels(grid: TileGrid):
    """Returns x and y of the pixel centres of a tile relative to its centre, px."""
    side = jnp.arange(grid.tile_size, dtype=jnp.float32) + 0.5 - grid.tile_size / 2
    return jnp.tile(side, grid.tile_size), jnp.repeat(side, grid.tile_size)


def _batches(starts: Int[Array, "S"], grid: TileGrid) -> tuple[_Batch, Int[Array, "B_n"]]:
    """Sorts tiles by length of their lists, longest first. Returns batches and the order (num_tiles marks padding)."""
    lengths = starts[1:] - starts[:-1]
    count = -(-grid.num_tiles // grid.batch)
    padding = (0, count * grid.batch - grid.num_tiles)
    order = jnp.argsort(-lengths).astype(jnp.int32)
    centers = jnp.stack([order % grid.columns, order // grid.columns], -1) * float(grid.tile_size) + grid.tile_size / 2
    batch = _Batch(
        starts=jnp.pad(starts[order], padding).reshape(count, -1),
        lengths=jnp.pad(lengths[order], padding).reshape(count, -1),
        centers=jnp.pad(centers, (padding, (0, 0))).reshape(count, -1, 2),
    )
    return batch, jnp.pad(order, padding, constant_values=grid.num_tiles)


def _fetch(attributes, ids, batch: _Batch, i, unroll: int):
    """Returns attributes [U, B, 6 + E] of the next Gaussians of each list, relative to tile centres; ids [U, B]."""
    offsets = i + jnp.arange(unroll, dtype=jnp.int32)[:, None]
    live = offsets < batch.lengths[None]
    gaussian = ids.at[batch.starts[None] + offsets].get(mode="clip")
    rows = attributes.at[gaussian].get(mode="clip")
    means = rows[..., :2] - batch.centers[None]
    opacity = jnp.where(live, rows[..., 5], 0.0)
    return jnp.concatenate([means, rows[..., 2:5], opacity[..., None], rows[..., GEOMETRY:]], -1), jnp.where(
        live, gaussian, attributes.shape[0]
    )


def _alpha(row: Float[Array, "B A"], x: Float[Array, "P"], y: Float[Array, "P"]):
    """Returns the clamped alpha [B, P] of one Gaussian per tile, and alpha before the clamp (0 where it is skipped)."""
    dx, dy = row[:, 0:1] - x[None], row[:, 1:2] - y[None]
    sigma = 0.5 * (row[:, 2:3] * dx * dx + row[:, 4:5] * dy * dy) + row[:, 3:4] * dx * dy
    raw = row[:, 5:6] * jnp.exp(-sigma)
    raw = jnp.where((raw >= MIN_ALPHA) & (sigma >= 0.0), raw, 0.0)
    return jnp.minimum(raw, MAX_ALPHA), raw


def _absorb(alpha, light):
    """Returns weight and transmittance behind a Gaussian; 0 from the Gaussian on at which the pixel stops."""
    behind = light * (1.0 - alpha)
    goes_on = behind > MIN_TRANSMITTANCE
    return jnp.where(goes_on, alpha * light, 0.0), jnp.where(goes_on, behind, 0.0)


def _forward(attributes, ids, starts, grid: TileGrid) -> Float[Array, "T E P"]:
    channels = attributes.shape[1] - GEOMETRY
    x, y = _local_pixels(grid)
    batches, order = _batches(starts, grid)

    def blend_batch(batch: _Batch):
        longest = jnp.max(batch.lengths)

        def body(carry):
            i, light, sums = carry
            rows, _ = _fetch(attributes, ids, batch, i, grid.unroll)
            for row in rows:
                alpha, _ = _alpha(row, x, y)
                weight, light = _absorb(alpha, light)
                sums = tuple(s + weight * row[:, GEOMETRY + c, None] for c, s in enumerate(sums))
            return i + grid.unroll, light, sums

        shape = (grid.batch, grid.pixels)
        start = (jnp.int32(0), jnp.ones(shape, jnp.float32), (jnp.zeros(shape, jnp.float32),) * channels)
        _, _, sums = jax.lax.while_loop(lambda c: (c[0] < longest) & jnp.any(c[1] > 0.0), body, start)
        return jnp.stack(sums, axis=1)

    blended = jax.lax.map(blend_batch, batches).reshape(-1, channels, grid.pixels)
    return jnp.zeros((grid.num_tiles, channels, grid.pixels), jnp.float32).at[order].set(blended, mode="drop")


def _backward(attributes, ids, starts, blended, cotangent, grid: TileGrid) -> Float[Array, "N A"]:
    channels = attributes.shape[1] - GEOMETRY
    x, y = _local_pixels(grid)
    basis = jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    batches, order = _batches(starts, grid)
    in_order = order.reshape(-1, grid.batch)
    total = jnp.sum(blended * cotangent, axis=1)

    def add_batch(gradient, work):
        batch, tiles = work
        longest = jnp.max(batch.lengths)
        g = cotangent.at[tiles].get(mode="clip")
        g_channels = tuple(g[:, c] for c in range(channels))

        def body(carry):
            i, light, remainder, gradient = carry
            rows, owners = _fetch(attributes, ids, batch, i, grid.unroll)
            slopes, weights = [], []
            for row in rows:
                alpha, raw = _alpha(row, x, y)
                before = light
                weight, light = _absorb(alpha, light)
                toward = sum(row[:, GEOMETRY + c, None] * g_channels[c] for c in range(channels))
                remainder = remainder - weight * toward
                d_alpha = before * toward - remainder / (1.0 - alpha)
                slopes.append(jnp.where((weight > 0.0) & (raw < MAX_ALPHA), -d_alpha * raw, 0.0))
                weights.append(weight)
            moments = jnp.matmul(jnp.stack(slopes), basis, precision=EXACT)
            d_features = jnp.stack([jnp.sum(jnp.stack(weights) * gc[None], -1) for gc in g_channels], -1)
            d_geometry = geometry_gradients(
                [rows[..., k] for k in range(GEOMETRY)], [moments[..., k] for k in range(GEOMETRY)]
            )
            update = jnp.concatenate([jnp.stack(d_geometry, -1), d_features], -1)
            return i + grid.unroll, light, remainder, gradient.at[owners].add(update, mode="drop")

        start = (
            jnp.int32(0),
            jnp.ones((grid.batch, grid.pixels), jnp.float32),
            total.at[tiles].get(mode="clip"),
            gradient,
        )
        return jax.lax.while_loop(lambda c: (c[0] < longest) & jnp.any(c[1] > 0.0), body, start)[3], None

    gradient, _ = jax.lax.scan(add_batch, jnp.zeros_like(attributes), (batches, in_order))
    return gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def blend(
    attributes: Float[Array, "N A"], ids: Int[Array, "M"], starts: Int[Array, "S"], grid: TileGrid
) -> Float[Array, "S-1 E P"]:
    """Blends the Gaussians of each tile front to back (Kerbl et al. 2023, eq. 3).

    Args:
      attributes: A = 6 + E columns: mean (px), conic xx xy yy (1/px^2), opacity, then E features.
      ids, starts: intersections, as `bin_tiles` lists them.
      grid: static sizes.
    Returns:
      Sum of weight times feature for S - 1 tiles of P pixels (row-major). Differentiable in `attributes`.
    """
    return _forward(attributes, ids, starts, grid)


def _blend_fwd(attributes, ids, starts, grid):
    blended = _forward(attributes, ids, starts, grid)
    return blended, (attributes, ids, starts, blended)


def _blend_bwd(grid, residuals, cotangent):
    attributes, ids, starts, blended = residuals
    return _backward(attributes, ids, starts, blended, cotangent, grid), None, None


blend.defvjp(_blend_fwd, _blend_bwd)


def _tile_grid(width: int, height: int, tile_size: int) -> TileGrid:
    """Returns measured loop sizes: short vectors for the cache of a CPU, wide ones for an accelerator."""
    batch = 4 if current_platform() == "cpu" else 1024
    return TileGrid(width, height, tile_size, batch=batch, unroll=4)


def rasterize(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int,
    max_intersections: int,
) -> RasterOutput:
    """Rasterizes at least one Gaussian on any platform, with a buffer for at least one intersection."""
    grid = _tile_grid(width, height, tile_size)
    size = {"width": width, "height": height, "tile_size": tile_size}
    return rasterize_by(
        functools.partial(blend, grid=grid), projected, features, **size, max_intersections=max_intersections
    )
