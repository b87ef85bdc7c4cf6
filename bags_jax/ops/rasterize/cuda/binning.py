"""Lists the intersections of tiles and Gaussians of C cameras, by the kernels of binning.cu and two sorts by XLA.

XLA uses CUB, the fastest sort, only for one simple key. So one sort orders all Gaussians by depth, and one stable sort
orders all intersections, which are made in that order, by tile.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from bags_jax.errors import UserError
from bags_jax.ops.limits import TILE
from bags_jax.ops.rasterize.tiles import MAX_COUNT, grid_size, total
from bags_jax.ops.toolchain.cuda_launch import Kernel, launch
from bags_jax.structs import Projected

BLOCK, SCAN_BLOCK = 256, 1024  # threads of a block; binning.cu has the same numbers


class Intersections(NamedTuple):
    """Intersections of C cameras, sorted by tile, front to back within a tile."""

    ids: Int[Array, "C M"]  # Gaussians; arbitrary behind the last intersection
    starts: Int[Array, "C S"]  # S = T + 1: tile t owns the intersections starts[t] : starts[t + 1]
    slots: Int[Array, "C M"] | None  # place before sorting by tile, where the slots of a Gaussian are neighbours
    begins: Int[Array, "C N"]  # first slot of each Gaussian
    counts: Int[Array, "C N"]  # number of slots of each Gaussian
    num_intersections: Int[Array, "C"]
    num_dropped: Int[Array, "C"]


def _depth_order(depth_keys: UInt[Array, "C N"]) -> Int[Array, "C N"]:
    """Orders all Gaussians by camera, front to back within each camera. Returns indices c * N + n."""
    cameras, num = depth_keys.shape
    places = jnp.arange(cameras * num, dtype=jnp.int32)
    order = jax.lax.sort((depth_keys.reshape(-1), places), num_keys=1, is_stable=True)[1]
    if cameras > 1:
        camera = (order // num).astype(jnp.uint16 if cameras <= 2**16 else jnp.uint32)
        order = jax.lax.sort((camera, order), num_keys=1, is_stable=True)[1]
    return order.reshape(cameras, num)


def _run(name: str, outputs, *operands, grid: tuple[int, int], threads: int = BLOCK):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs]
    return launch(Kernel("binning", name, threads), shapes, *operands, grid=grid)


def _check_fits(cameras: int, num: int, width: int, height: int, capacity: int) -> None:
    """Raises UserError where a kernel would count beyond int32, or not notice that intersections are dropped."""
    tiles = math.prod(grid_size(width, height, TILE))
    if max(capacity + num + tiles, cameras * num, cameras * (tiles + 1), BLOCK * tiles) >= MAX_COUNT - BLOCK:
        raise UserError(
            f"{num} Gaussians, {cameras} x {width} x {height} px and a buffer for {capacity} intersections came, "
            f"expected buffer size, Gaussians x cameras, tiles x cameras and {BLOCK} x tiles below 2^31: take fewer"
        )


class Counted(NamedTuple):
    """Results of `count_tiles` for the Gaussians of C cameras."""

    counts: Int[Array, "C N"]  # tiles that each Gaussian touches
    depth_keys: UInt[Array, "C N"]  # ordered like the depths; the largest key for Gaussians that touch no tile


def _shapes(projected: Projected) -> tuple[Array, Array, Array]:
    return projected.means_px, projected.covs_px, projected.radii_px


def _count_tiles(sizes: Int[Array, "6"], projected: Projected) -> Counted:
    depths = projected.depths
    outputs = [(depths.shape, jnp.int32), (depths.shape, jnp.uint32)]
    operands = (sizes, *_shapes(projected), depths)
    return Counted(*_run("count_tiles", outputs, *operands, grid=(-(-depths.size // BLOCK), 1)))


def count_views(projected: Projected, *, width: int, height: int) -> Int[Array, "C"]:
    """Counts the intersections that `bin_views` makes for each camera, up to 2^31 - 1."""
    cameras, num = projected.depths.shape
    if not num:
        return jnp.zeros(cameras, jnp.int32)
    _check_fits(cameras, num, width, height, 0)
    sizes = jnp.array([num, 0, *grid_size(width, height, TILE), cameras, 0], jnp.int32)
    return total(_count_tiles(sizes, projected).counts)


def bin_views(projected: Projected, *, width: int, height: int, capacity: int, with_slots: bool) -> Intersections:
    """Lists, for each tile of each camera, the Gaussians visible in it, front to back, by the rules of `bin_tiles`.

    Args:
      projected: N Gaussians on the screens of C cameras, each array with a leading axis of cameras.
      width, height: image size, px.
      capacity: buffer size of each camera. Intersections that do not fit are dropped and counted in num_dropped.
      with_slots: return the slots, which gradients in a fixed order need.
    Raises:
      UserError: more than int32 can count.
    """
    cameras, num = projected.depths.shape
    _check_fits(cameras, num, width, height, capacity)
    columns, rows = grid_size(width, height, TILE)
    bounds, blocks = columns * rows + 1, -(-num // BLOCK)
    sizes = jnp.array([num, capacity, columns, rows, cameras, 0], jnp.int32)
    i32 = jnp.int32

    counts, keys = _count_tiles(sizes, projected)
    order = _depth_order(keys)
    (sums,) = _run("sum_blocks", [((cameras, blocks), i32)], sizes, order, counts, grid=(blocks, cameras))
    scanned = [((cameras, blocks), i32), ((cameras,), i32)]
    block_begins, totals = _run("scan_blocks", scanned, sizes, sums, grid=(cameras, 1), threads=SCAN_BLOCK)

    key, bits = (jnp.uint16, 16) if cameras * bounds <= 2**16 else (jnp.uint32, 32)
    expanded = [((cameras, capacity), key), ((cameras, capacity), i32), ((cameras, num), i32)]
    inputs = (sizes, order, counts, block_begins, totals, *_shapes(projected))
    tiles, ids, begins = _run(f"expand_pairs_u{bits}", expanded, *inputs, grid=(blocks, cameras))
    tiles, ids, slots = _sort_by_tile(tiles, ids, with_slots)
    bounded = [((cameras, bounds), i32)]
    (starts,) = _run(f"find_ranges_u{bits}", bounded, sizes, tiles, grid=(-(-cameras * bounds // BLOCK), 1))
    return Intersections(ids, starts, slots, begins, counts, totals, jnp.maximum(totals - capacity, 0))


def _sort_by_tile(tiles: UInt[Array, "C M"], ids: Int[Array, "C M"], with_slots: bool):
    """Sorts intersections by tile, stably: they are in depth order. Returns tiles, ids, and slots or None."""
    values = ids
    if with_slots:
        values = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    tiles, values = (
        x.reshape(ids.shape) for x in jax.lax.sort((tiles.reshape(-1), values.reshape(-1)), num_keys=1, is_stable=True)
    )
    if not with_slots:
        return tiles, values, None
    return tiles, jnp.take_along_axis(ids, values, axis=1), values


def sum_slots(intersections: Intersections, of_slots: Float[Array, "C M V"]) -> Float[Array, "C N V"]:
    """Sums the rows of the slots of each Gaussian, in their order."""
    (cameras, num), (_, capacity, values) = intersections.counts.shape, of_slots.shape
    sizes = jnp.array([num, capacity, 0, 0, cameras, values], jnp.int32)
    shape = (cameras, num, values)
    grid = (-(-cameras * num * values // BLOCK), 1)
    operands = (sizes, intersections.begins, intersections.counts, of_slots)
    return _run("sum_slots", [(shape, jnp.float32)], *operands, grid=grid)[0]
