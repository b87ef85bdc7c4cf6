"""The blur of a block of rows in plain XLA, one tap after the other, and its gradient.

Columns of the image are grouped by x mod stride, so that weights of neighbouring kernels multiply neighbours in memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.numerics import EXACT
from bags_jax.ops.blur.kernels import Filtered, KernelBlock, clip, tap_moments


def split(bordered: Float[Array, "D H W"], h: int, w: int, block: KernelBlock) -> Float[Array, "E D y x"]:
    """Groups the columns of an image with half a kernel around it: [e, :, y, x] is column stride * x + e.

    A tap at column offset stride * a + b reads [b : b + stride, :, :, a : a + w]. E = 2 * stride - 1.
    """
    radius, stride = block.side // 2, block.stride
    _, height, width = bordered.shape
    columns = w + 2 * radius // stride
    below, right = h * stride + 2 * radius - height, (columns + 1) * stride - width
    padded = jnp.pad(bordered, ((0, 0), (0, below), (0, right)), mode="edge")
    parts = jnp.moveaxis(padded.reshape(*padded.shape[:2], columns + 1, stride), -1, 0)
    return jnp.concatenate([parts[..., :columns], parts[: stride - 1, ..., 1:]])


def join(image: Float[Array, "P D y x"]) -> Float[Array, "D y X"]:
    """Puts the columns of a filtered image in their order."""
    return jnp.moveaxis(image, 0, -1).reshape(*image.shape[1:3], -1)


def filter_rows(slab: Float[Array, "E D y x"], logits: Float[Array, "KK n"], block: KernelBlock) -> Filtered:
    """Applies and measures the kernels of a block of rows.

    Args:
      slab: rows of the image that the kernels read, in the layout of `split`.
      logits: of the kernels, not clipped; n = block.rows * w.
      block: static description.
    """
    w = logits.shape[1] // block.rows
    starts, moments = _tap_table(block)
    basis = jnp.concatenate([jnp.ones((1, block.side**2)), moments.T])
    logits = clip(logits, block.bound)
    peak = _peak(logits, block)
    weights = jnp.exp(logits - peak[None]) - block.floor
    sums = jnp.dot(basis, weights, precision=EXACT)

    def add_tap(total, tap):
        start, weight = tap
        return total + weight.reshape(1, 1, -1, 1, w) * _by_row(_read(slab, start, block, w), block), None

    total = jax.lax.scan(add_tap, jnp.zeros(_shape(slab, block, w)), (starts, weights))[0]
    total = total / sums[0].reshape(1, 1, -1, 1, w)
    return Filtered(
        image=total.reshape(*total.shape[:2], -1, w),
        moments=(sums[1:] / sums[:1]).reshape(5, block.rows, w),
        normalizer=(peak + jnp.log(sums[0])).reshape(block.rows, w),
    )


def filter_rows_gradient(
    slab: Float[Array, "E D y x"],
    logits: Float[Array, "KK n"],
    filtered: Filtered,
    d_image: Float[Array, "P D y2 x2"],
    d_moments: Float[Array, "5 r w"],
    block: KernelBlock,
) -> tuple[Float[Array, "E D y x"], Float[Array, "KK n"]]:
    """Computes the gradients of slab and logits of `filter_rows`."""
    w = d_moments.shape[2]
    g = _by_row(d_image, block)
    floor = block.floor * jnp.exp(block.bound - filtered.normalizer) if block.floor else 0.0
    # sum_k h_k dh_k, computed from the outputs
    inner = _dot(g, _by_row(filtered.image, block)) + jnp.sum(d_moments * filtered.moments, axis=0)

    def tap_gradients(d_slab, tap):
        (start, moment), raw = tap
        logit, pull = jax.vjp(lambda x: clip(x, block.bound), raw.reshape(block.rows, w))
        slope = jnp.exp(logit - filtered.normalizer)
        kernel = slope - floor
        d_kernel = _dot(g, _by_row(_read(slab, start, block, w), block)) - inner
        d_kernel += sum(moment[i] * d_moments[i] for i in range(5))
        (d_logit,) = pull(slope * d_kernel)
        phase, dy, column = start
        added = _read(d_slab, start, block, w) + (kernel[None, None, :, None] * g).reshape(d_image.shape)
        return jax.lax.dynamic_update_slice(d_slab, added, (phase, 0, dy, column)), d_logit.reshape(-1)

    return jax.lax.scan(tap_gradients, jnp.zeros_like(slab), (_tap_table(block), logits))


def _tap_table(block: KernelBlock):
    """Returns phase, row and column at which each tap starts to read, and the five moments of each tap."""
    tap = np.arange(block.side**2)
    dy, dx = tap // block.side, tap % block.side
    starts = np.stack([dx % block.stride, dy, dx // block.stride], axis=-1).astype(np.int32)
    return jnp.asarray(starts), jnp.asarray(tap_moments(block.side).T)


def _peak(logits, block: KernelBlock):
    """Returns the number to subtract before exp. A scan: XLA's CPU code for a leading-axis maximum is scalar."""
    if block.floor:
        return jnp.full(logits.shape[1:], block.bound)
    return jax.lax.scan(lambda m, x: (jnp.maximum(m, x), None), logits[0], logits)[0]


def _shape(slab, block: KernelBlock, w: int) -> tuple[int, ...]:
    return block.stride, slab.shape[1], block.rows, block.stride, w


def _read(slab, start, block: KernelBlock, w: int) -> Float[Array, "P D y2 x2"]:
    """Returns the part of a slab that a tap reads."""
    phase, dy, column = start
    return jax.lax.dynamic_slice(
        slab, (phase, 0, dy, column), (block.stride, slab.shape[1], block.rows * block.stride, w)
    )


def _by_row(image: Float[Array, "P D y x"], block: KernelBlock) -> Float[Array, "P D r s x"]:
    """Splits rows of pixels into rows of blocks."""
    return image.reshape(*image.shape[:2], block.rows, block.stride, -1)


def _dot(a: Float[Array, "s D r s w"], b: Float[Array, "s D r s w"]) -> Float[Array, "r w"]:
    """Sums over channels and pixels of a block, unrolled: XLA's CPU code for this reduction is not vectorised."""
    stride, channels = a.shape[:2]
    each = [(j, c, i) for j in range(stride) for c in range(channels) for i in range(stride)]
    return functools.reduce(jnp.add, [a[j, c, :, i] * b[j, c, :, i] for j, c, i in each])
