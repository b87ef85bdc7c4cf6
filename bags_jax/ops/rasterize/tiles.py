"""Lists the intersections of tiles and Gaussians, in depth order, in a buffer of static size.

A Gaussian is visible inside the ellipse where its alpha is at least 1/255. The part of an ellipse in a row of tiles is
convex, so the ellipse touches one interval of tiles of that row, known in closed form. Gaussians are expanded twice:
into the rows of tiles that they touch, then each row into its interval. The test is exact: no tile is listed in vain.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.errors import UserError
from bags_jax.ops.limits import TILE
from bags_jax.structs import Projected

SLACK_PX = 1e-3  # widens intervals, so that rounding never loses a pixel
SCAN_ROW = 1024
FREE_TILE = 8  # side of a tile where the backend takes any, px
MAX_COUNT = 2**31 - 1  # counts saturate here


class Tiles(NamedTuple):
    """Intersections sorted by tile, front to back within a tile."""

    gaussian_ids: Int[Array, "M"]  # arbitrary behind the last intersection
    starts: Int[Array, "S"]  # S = T + 1: tile t owns the intersections starts[t] : starts[t + 1]
    num_intersections: Int[Array, ""]  # dropped ones included
    num_dropped: Int[Array, ""]


class _Expansion(NamedTuple):
    owner: Int[Array, "M"]  # item that a slot belongs to
    rank: Int[Array, "M"]  # number of a slot among the slots of its item
    filled: Int[Array, "M"]  # bool: the slot is used
    total: Int[Array, ""]


def default_tile_size(backend: str) -> int:
    """Returns the side of a tile where the caller names none, px."""
    return TILE if backend in ("cuda", "tpu") else FREE_TILE


def grid_size(width: int, height: int, tile_size: int) -> tuple[int, int]:
    """Returns the number of columns and rows of tiles that cover an image.

    Raises:
      ValueError: an image or a tile without pixels.
    """
    if width < 1 or height < 1 or tile_size < 1:
        raise ValueError(f"image {width} x {height} px with tiles of {tile_size} px came, expected all of them >= 1")
    return -(-width // tile_size), -(-height // tile_size)


def check_tile_size(tile_size: int, backend: str) -> None:
    """Raises UserError unless the kernels of a backend, "cuda" or "tpu", are compiled for tiles of this size."""
    if tile_size != TILE:
        raise UserError(
            f"tile_size={tile_size} came with backend={backend!r}, whose kernels have tiles of {TILE} px: "
            "pass tile_size=None, or backend='xla'"
        )


def _running(scan: Callable, x: Int[Array, "N"], combine: Callable) -> Int[Array, "N"]:
    """Scans a long array as rows, then the ends of the rows. Compiles faster, on a TPU by far, and runs faster."""
    by_rows = scan(jnp.pad(x, (0, -x.size % SCAN_ROW)).reshape(-1, SCAN_ROW), axis=1)
    before = jnp.pad(
        scan(by_rows[:-1, -1], axis=0), (1, 0)
    )  # counts are >= 0, so 0 is the identity of max as well as of +
    return combine(by_rows, before[:, None]).reshape(-1)[: x.size]


def _running_sum(x: Int[Array, "N"]) -> Int[Array, "N"]:
    return _running(jnp.cumsum, x, jnp.add)


def _running_max(x: Int[Array, "N"]) -> Int[Array, "N"]:
    return _running(jax.lax.cummax, x, jnp.maximum)


def _plus(a: Int[Array, ""], b: Int[Array, ""]) -> Int[Array, ""]:
    """Returns a + b of non-negative numbers, at most MAX_COUNT."""
    return jnp.minimum(a, MAX_COUNT - b) + b


def total(counts: Int[Array, "*C N"]) -> Int[Array, "*C"]:
    """Sums counts over the last axis, up to MAX_COUNT."""
    return jax.lax.reduce(counts, jnp.int32(0), _plus, (counts.ndim - 1,))


def _expand(counts: Int[Array, "N"], capacity: int) -> _Expansion:
    """Gives each item `counts` consecutive slots, in order: a repeat with a static total.

    No item gets a slot if the total reaches MAX_COUNT: the buffer is too small for it anyway.
    """
    sum_of_counts = total(counts)
    counts = jnp.where(sum_of_counts < MAX_COUNT, counts, 0)
    ends = _running_sum(counts)
    begins = ends - counts
    slots = jnp.arange(capacity, dtype=jnp.int32)
    items = jnp.arange(counts.shape[0], dtype=jnp.int32)
    first = jnp.zeros(capacity, jnp.int32).at[jnp.where(counts > 0, begins, capacity)].set(items, mode="drop")
    owner = _running_max(first)
    return _Expansion(owner, slots - begins[owner], slots < ends[-1], sum_of_counts)


def _rows(projected: Projected, rows: int, tile_size: int) -> tuple[Int[Array, "N"], Int[Array, "N"]]:
    """Returns the first row of tiles that each Gaussian touches, and the number of rows."""
    y, radius = projected.means_px[:, 1], projected.radii_px[:, 1] + SLACK_PX
    # Alpha is sampled at pixel centres, half a pixel inside the border of a tile.
    first = jnp.clip(jnp.ceil((y - radius + 0.5) / tile_size).astype(jnp.int32) - 1, 0, rows)
    stop = jnp.clip(jnp.floor((y + radius - 0.5) / tile_size).astype(jnp.int32) + 1, 0, rows)
    return first, jnp.where(projected.radii_px[:, 1] > 0, jnp.maximum(stop - first, 0), 0)


def _interval(
    ellipse: Float[Array, "M 7"], row: Int[Array, "*M"], columns: int, tile_size: int
) -> tuple[Int[Array, "M"], Int[Array, "M"]]:
    """Returns the first tile of a row that an ellipse touches, and the number of tiles.

    The right border of the ellipse is a concave function of y. Its maximum over the row is at the y of the rightmost
    point, clipped to the row. The left border likewise.
    """
    x, y, xx, xy, yy, rx, ry = ellipse.T
    top = jnp.clip(row * tile_size + 0.5 - SLACK_PX - y, -ry, ry)
    bottom = jnp.clip((row + 1) * tile_size - 0.5 + SLACK_PX - y, -ry, ry)
    tip = rx * xy / xx
    scale = jnp.sqrt(jnp.maximum(xx * yy - xy * xy, 0.0)) / yy

    def border(dy, side):
        return x + dy * xy / yy + side * scale * jnp.sqrt(jnp.maximum(ry * ry - dy * dy, 0.0))

    right = border(jnp.clip(tip, top, bottom), 1.0) + SLACK_PX
    left = border(jnp.clip(-tip, top, bottom), -1.0) - SLACK_PX
    first = jnp.clip(jnp.ceil((left + 0.5) / tile_size).astype(jnp.int32) - 1, 0, columns)
    stop = jnp.clip(jnp.floor((right - 0.5) / tile_size).astype(jnp.int32) + 1, 0, columns)
    return first, jnp.maximum(stop - first, 0)


def _sort_by_tile(tile: Int[Array, "M"], rank: Int[Array, "M"], num_tiles: int, num_gaussians: int):
    """Sorts intersections by tile and keeps their depth order (rank is the place in that order)."""
    if (num_tiles + 1) * num_gaussians < 2**32:  # one packed key sorts twice as fast as two operands
        packed = tile.astype(jnp.uint32) * jnp.uint32(num_gaussians) + rank.astype(jnp.uint32)
        packed = jax.lax.sort(packed, is_stable=False)
        return (packed // num_gaussians).astype(jnp.int32), (packed % num_gaussians).astype(jnp.int32)
    return jax.lax.sort((tile, rank), num_keys=1, is_stable=True)


def bin_tiles(projected: Projected, *, width: int, height: int, tile_size: int, max_intersections: int) -> Tiles:
    """Lists, for each tile, the Gaussians visible in it, front to back.

    Args:
      projected: N Gaussians on the screen of one camera.
      width, height: image size, px.
      tile_size: side of a tile, px.
      max_intersections: buffer size. Intersections that do not fit are dropped and counted in num_dropped.
    """
    projected = jax.lax.stop_gradient(projected)
    num_gaussians = projected.depths.shape[0]
    columns, rows = grid_size(width, height, tile_size)
    # Expanding in depth order makes every later step stable at no cost.
    order = jnp.argsort(jnp.where(projected.radii_px[:, 0] > 0, projected.depths, jnp.inf))
    ordered = jax.tree.map(lambda x: x[order], projected)
    first_row, num_rows = _rows(ordered, rows, tile_size)
    strip = _expand(num_rows, max_intersections)
    row = first_row[strip.owner] + strip.rank

    first_column, num_columns = _interval(_ellipses(ordered)[strip.owner], row, columns, tile_size)
    slot = _expand(jnp.where(strip.filled, num_columns, 0), max_intersections)
    tile = row[slot.owner] * columns + first_column[slot.owner] + slot.rank
    tile, rank = _sort_by_tile(
        jnp.where(slot.filled, tile, columns * rows), strip.owner[slot.owner], columns * rows, num_gaussians
    )
    # Intersections of rows that do not fit are unknown. Each such row counts as one, so that dropping is never hidden.
    lost_rows = jnp.maximum(strip.total - max_intersections, 0)
    return Tiles(
        gaussian_ids=order[rank].astype(jnp.int32),
        starts=jnp.searchsorted(tile, jnp.arange(columns * rows + 1, dtype=jnp.int32)).astype(jnp.int32),
        num_intersections=_plus(slot.total, lost_rows),
        num_dropped=_plus(jnp.maximum(slot.total - max_intersections, 0), lost_rows),
    )


def count_intersections(projected: Projected, *, width: int, height: int, tile_size: int) -> Int[Array, ""]:
    """Counts the intersections of an image, up to MAX_COUNT, without a buffer: one row of tiles after the other."""
    projected = jax.lax.stop_gradient(projected)
    columns, rows = grid_size(width, height, tile_size)
    first_row, num_rows = _rows(projected, rows, tile_size)
    ellipses = _ellipses(projected)

    def add_row(so_far, row):
        touched = (row >= first_row) & (row < first_row + num_rows)
        _, num_columns = _interval(ellipses, row, columns, tile_size)
        return _plus(so_far, total(jnp.where(touched, num_columns, 0))), None

    return jax.lax.scan(add_row, jnp.int32(0), jnp.arange(rows, dtype=jnp.int32))[0]


def _ellipses(projected: Projected) -> Float[Array, "N 7"]:
    return jnp.concatenate([projected.means_px, projected.covs_px, projected.radii_px + SLACK_PX], axis=-1)
