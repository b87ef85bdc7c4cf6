"""The blur of a block of rows by blur.cc: the functions of ../xla.py, eight kernels at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.ops.blur.kernels import Filtered, KernelBlock
from bags_jax.ops.blur.xla import join, split
from bags_jax.ops.limits import COLORS

__all__ = ["filter_rows", "filter_rows_gradient", "join", "split"]

PIECES = 8  # parts of a block of rows; one thread computes the gradient of the image for one part


def _call(target: str, shapes, block: KernelBlock, *operands) -> list[Array]:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(target, results, vmap_method="sequential")
    sizes = {"side": np.int32(block.side), "stride": np.int32(block.stride)}
    limits = {"bound": np.float32(block.bound or math.inf), "floor": np.float32(block.floor)}
    return list(call(*operands, **sizes, **limits))


def filter_rows(slab: Float[Array, "E D y x"], logits: Float[Array, "KK n"], block: KernelBlock) -> Filtered:
    """Does what xla.filter_rows does."""
    rows, w = block.rows, logits.shape[1] // block.rows
    shapes = [(block.stride, COLORS, rows * block.stride, w), (5, rows, w), (rows, w)]
    return Filtered(*_call("bags_jax_filter_rows", shapes, block, slab, logits))


def filter_rows_gradient(
    slab: Float[Array, "E D y x"],
    logits: Float[Array, "KK n"],
    filtered: Filtered,
    d_image: Float[Array, "P D y2 x2"],
    d_moments: Float[Array, "5 r w"],
    block: KernelBlock,
) -> tuple[Float[Array, "E D y x"], Float[Array, "KK n"]]:
    """Does what xla.filter_rows_gradient does."""
    piece_rows = -(-block.rows // PIECES)
    read_rows = piece_rows * block.stride + 2 * (block.side // 2)
    pieces = (-(-block.rows // piece_rows), *slab.shape[:2], read_rows, slab.shape[3])  # scratch memory
    operands = (slab, logits, *filtered, d_image, d_moments)
    d_slab, d_logits, _ = _call("bags_jax_filter_rows_gradient", [slab.shape, logits.shape, pieces], block, *operands)
    return d_slab, d_logits
