"""A block of rows by the C++ of bags_jax/native/blur.cc: what rows_xla.py does, eight kernels at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.ops.blur.kernels import Filtered, Plan
from bags_jax.ops.blur.xla import join, split
from bags_jax.ops.toolchain import cpp_build
from bags_jax.platforms import current_platform

__all__ = ["can_run", "filter_rows", "filter_rows_gradient", "join", "split"]

STRIDES = (1, 2, 3, 4)  # that the C++ is compiled for
COLORS = 3
PIECES = 8  # of a block of rows: the part of each in the gradient of the image is one thread's


def can_run(plan: Plan, channels: int) -> bool:
    """Whether there is C++ for this, and JAX runs on a CPU that it is built for."""
    fits = plan.stride in STRIDES and channels == COLORS
    return fits and current_platform() == "cpu" and cpp_build.is_available()


def _call(target: str, shapes, plan: Plan, *operands) -> list[Array]:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(target, results, vmap_method="sequential")
    sizes = {"side": np.int32(plan.side), "stride": np.int32(plan.stride)}
    limits = {"bound": np.float32(plan.bound or math.inf), "floor": np.float32(plan.floor)}
    return list(call(*operands, **sizes, **limits))


def filter_rows(slab: Float[Array, "E D y x"], logits: Float[Array, "KK n"], plan: Plan) -> Filtered:
    """rows_xla.filter_rows."""
    rows, w = plan.rows, logits.shape[1] // plan.rows
    shapes = [(plan.stride, COLORS, rows * plan.stride, w), (5, rows, w), (rows, w)]
    return Filtered(*_call("bags_jax_filter_rows", shapes, plan, slab, logits))


def filter_rows_gradient(
    slab: Float[Array, "E D y x"],
    logits: Float[Array, "KK n"],
    filtered: Filtered,
    d_image: Float[Array, "P D y2 x2"],
    d_moments: Float[Array, "5 r w"],
    plan: Plan,
) -> tuple[Float[Array, "E D y x"], Float[Array, "KK n"]]:
    """rows_xla.filter_rows_gradient."""
    piece_rows = -(-plan.rows // PIECES)
    read_rows = piece_rows * plan.stride + 2 * (plan.side // 2)
    pieces = (-(-plan.rows // piece_rows), *slab.shape[:2], read_rows, slab.shape[3])  # work space
    operands = (slab, logits, *filtered, d_image, d_moments)
    d_slab, d_logits, _ = _call("bags_jax_filter_rows_gradient", [slab.shape, logits.shape, pieces], plan, *operands)
    return d_slab, d_logits
