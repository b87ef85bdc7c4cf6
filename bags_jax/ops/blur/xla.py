"""A block of rows by XLA, one tap after the other: kernels applied and measured, and the gradient.

Columns of the image are told apart by their place in a block of pixels, so that weights of blocks multiply neighbours in memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.numerics import EXACT
from bags_jax.ops.blur.kernels import Filtered, Plan, clip, tap_moments


def split(bordered: Float[Array, "D H W"], h: int, w: int, plan: Plan) -> Float[Array, "E D y x"]:
    """An image with half a kernel around it, every stride-th column together: [e, :, y, x] is column stride * x + e.

    A tap at column offset stride * a + b reads [b : b + stride, :, :, a : a + w] for the block columns at hand. E = 2 * stride - 1.
    """
    radius, stride = plan.side // 2, plan.stride
    _, height, width = bordered.shape
    columns = w + 2 * radius // stride
    below, right = h * stride + 2 * radius - height, (columns + 1) * stride - width
    padded = jnp.pad(bordered, ((0, 0), (0, below), (0, right)), mode="edge")
    parts = jnp.moveaxis(padded.reshape(*padded.shape[:2], columns + 1, stride), -1, 0)
    return jnp.concatenate([parts[..., :columns], parts[: stride - 1, ..., 1:]])


def join(image: Float[Array, "P D y x"]) -> Float[Array, "D y X"]:
    """The columns of a filtered image in their order."""
    return jnp.moveaxis(image, 0, -1).reshape(*image.shape[1:3], -1)


def filter_rows(slab: Float[Array, "E D y x"], logits: Float[Array, "KK n"], plan: Plan) -> Filtered:
    """Applies and measures the kernels of a block of rows.

    Args:
      slab: the rows of the image that the kernels read, as `split` lays them out.
      logits: of the kernels, not yet clipped; n = plan.rows * w.
      plan: static part.
    """
    w = logits.shape[1] // plan.rows
    starts, moments = _tap_table(plan)
    basis = jnp.concatenate([jnp.ones((1, plan.side**2)), moments.T])
    logits = clip(logits, plan.bound)
    peak = _peak(logits, plan)
    weights = jnp.exp(logits - peak[None]) - plan.floor
    sums = jnp.dot(basis, weights, precision=EXACT)

    def add_tap(total, tap):
        start, weight = tap
        return total + weight.reshape(1, 1, -1, 1, w) * _by_row(_read(slab, start, plan, w), plan), None

    total = jax.lax.scan(add_tap, jnp.zeros(_shape(slab, plan, w)), (starts, weights))[0]
    total = total / sums[0].reshape(1, 1, -1, 1, w)
    return Filtered(
        image=total.reshape(*total.shape[:2], -1, w),
        moments=(sums[1:] / sums[:1]).reshape(5, plan.rows, w),
        normalizer=(peak + jnp.log(sums[0])).reshape(plan.rows, w),
    )


def filter_rows_gradient(
    slab: Float[Array, "E D y x"],
    logits: Float[Array, "KK n"],
    filtered: Filtered,
    d_image: Float[Array, "P D y2 x2"],
    d_moments: Float[Array, "5 r w"],
    plan: Plan,
) -> tuple[Float[Array, "E D y x"], Float[Array, "KK n"]]:
    """Gradients of a slab and of the logits from those of what `filter_rows` made of them."""
    w = d_moments.shape[2]
    g = _by_row(d_image, plan)
    floor = plan.floor * jnp.exp(plan.bound - filtered.normalizer) if plan.floor else 0.0
    # sum_k h_k dh_k, from the outputs
    inner = _dot(g, _by_row(filtered.image, plan)) + jnp.sum(d_moments * filtered.moments, axis=0)

    def tap_gradients(d_slab, tap):
        (start, moment), raw = tap
        logit, pull = jax.vjp(lambda x: clip(x, plan.bound), raw.reshape(plan.rows, w))
        slope = jnp.exp(logit - filtered.normalizer)
        kernel = slope - floor
        d_kernel = _dot(g, _by_row(_read(slab, start, plan, w), plan)) - inner
        d_kernel += sum(moment[i] * d_moments[i] for i in range(5))
        (d_logit,) = pull(slope * d_kernel)
        phase, dy, column = start
        added = _read(d_slab, start, plan, w) + (kernel[None, None, :, None] * g).reshape(d_image.shape)
        return jax.lax.dynamic_update_slice(d_slab, added, (phase, 0, dy, column)), d_logit.reshape(-1)

    return jax.lax.scan(tap_gradients, jnp.zeros_like(slab), (_tap_table(plan), logits))


def _tap_table(plan: Plan):
    """Phase, row and column where each tap starts to read, and its five moments."""
    tap = np.arange(plan.side**2)
    dy, dx = tap // plan.side, tap % plan.side
    starts = np.stack([dx % plan.stride, dy, dx // plan.stride], axis=-1).astype(np.int32)
    return jnp.asarray(starts), jnp.asarray(tap_moments(plan.side).T)


def _peak(logits, plan: Plan):
    """What is subtracted before exp; a scan, because XLA's CPU code for a maximum over the leading axis is scalar."""
    if plan.floor:
        return jnp.full(logits.shape[1:], plan.bound)
    return jax.lax.scan(lambda m, x: (jnp.maximum(m, x), None), logits[0], logits)[0]


def _shape(slab, plan: Plan, w: int) -> tuple[int, ...]:
    return plan.stride, slab.shape[1], plan.rows, plan.stride, w


def _read(slab, start, plan: Plan, w: int) -> Float[Array, "P D y2 x2"]:
    """The part of a slab that a tap reads."""
    phase, dy, column = start
    return jax.lax.dynamic_slice(slab, (phase, 0, dy, column), (plan.stride, slab.shape[1], plan.rows * plan.stride, w))


def _by_row(image: Float[Array, "P D y x"], plan: Plan) -> Float[Array, "P D r s x"]:
    """Rows of pixels as rows of blocks."""
    return image.reshape(*image.shape[:2], plan.rows, plan.stride, -1)


def _dot(a: Float[Array, "s D r s w"], b: Float[Array, "s D r s w"]) -> Float[Array, "r w"]:
    """Sum over channels and the pixels of a block, unrolled: XLA's CPU code for such a reduction is not vectorised."""
    stride, channels = a.shape[:2]
    each = [(j, c, i) for j in range(stride) for c in range(channels) for i in range(stride)]
    return functools.reduce(jnp.add, [a[j, c, :, i] * b[j, c, :, i] for j, c, i in each])
