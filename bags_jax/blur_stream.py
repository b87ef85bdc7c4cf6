"""Per-pixel kernels that never exist as a whole: last layer, softmax and weighted sum of shifted pixels in one operation.

  logits = clip(features @ weight + bias),  h = softmax(logits) less its floor,  filtered(x) = sum_k h_k(x) C(x + k)

Logits that are clipped keep gradients alive, but would leave e^(-2 bound) in every tap, and hundreds of taps make a glare of it that
shows in the dark parts of sharp photographs. So 99 % of the least weight a tap can have is taken off every tap, and the rest normalised:
a tap at the lower bound is next to nothing, and opens as readily as ever.

This is local attention with one key for each offset. It runs over blocks of rows that fit a budget of memory and keeps its
inputs and outputs alone; the backward pass makes the logits of a block again and uses, as Rabe & Staats (2021) and Dao et
al. (2022) do, that sum_k h_k dh_k is the product of the output with its gradient. Memory is that of a few images.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.numerics import EXACT, clip_with_return

FLOOR = 0.99  # part of the weight of a tap at the lower bound that is taken off every tap
CPU_BLOCK_BYTES = 4 << 20  # logits of one block: in the cache of a CPU core
DEVICE_BLOCK_BYTES = 100 << 20  # on an accelerator: few launches


def kernel_side(num_taps: int) -> int:
    """K of K * K taps.

    Raises:
      ValueError: not the square of an odd number.
    """
    side = math.isqrt(num_taps)
    if side * side != num_taps or side % 2 == 0:
        raise ValueError(f"{num_taps} kernel taps came, expected the square of an odd number (9, 25, 81, 169, 289)")
    return side


def tap_offsets(side: int) -> Float[np.ndarray, "KK 2"]:
    """dx and dy of each tap, px: the kernel at x reads the image at x + offset."""
    line = np.arange(side, dtype=np.float32) - side // 2
    return np.stack([np.tile(line, side), np.repeat(line, side)], axis=-1)


def tap_moments(side: int) -> Float[np.ndarray, "5 KK"]:
    """dx, dy (px), dx dx, dx dy, dy dy (px^2) of each tap."""
    dx, dy = tap_offsets(side).T
    return np.stack([dx, dy, dx * dx, dx * dy, dy * dy])


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static part: side of kernels, side of blocks that share one, bound of the logits, coarse rows at a time."""

    side: int
    stride: int
    bound: float
    rows: int


def rows_per_block(height: int, width: int, num_taps: int, block_bytes: int) -> int:
    """Rows of a coarse field whose logits fit a budget, at least one; blocks are about equally high."""
    most = max(1, block_bytes // (4 * width * num_taps))
    return -(-height // -(-height // most))


def stream_blur(
    planes: Float[Array, "D H W"],
    features: Float[Array, "h w F"],
    weight: Float[Array, "F KK"],
    bias: Float[Array, "KK"],
    *,
    stride: int,
    bound: float,
    margin: int = 0,
    block_bytes: int = 0,
) -> tuple[Float[Array, "D h_px w_px"], Float[Array, "5 h w"]]:
    """Applies the kernels `kernels_of(features @ weight + bias)` and measures them on the way.

    Args:
      planes: the image, with `margin` px on each side that kernels may draw on; beyond, its last pixel goes on.
      features, weight, bias: the last layer, one kernel for each block of stride x stride px; taps row-major (dy, dx).
      margin: px of the image that have no kernel of their own, on each side.
      bound: logits are clipped to +- bound with numerics.clip_with_return's gradient; 0: not at all.
      block_bytes: memory of the logits at a time; 0: by the backend.
    Returns:
      filtered: sum_k h_k(x) C(x + k), without the margin.
      moments: sum_k h_k times dx, dy (px), dx dx, dx dy, dy dy (px^2) of each kernel.
    Raises:
      ValueError: the image without its margin has not the size that the kernels are for.
    Differentiable in all arrays.
    """
    side = kernel_side(weight.shape[1])
    h, w, _ = features.shape
    channels, height, width = planes.shape[0], planes.shape[1] - 2 * margin, planes.shape[2] - 2 * margin
    if (-(-height // stride), -(-width // stride)) != (h, w):
        raise ValueError(
            f"an image of {planes.shape[2]} x {planes.shape[1]} px with a margin of {margin} px came with kernels for {w} x {h} blocks "
            f"of {stride} px, expected {w * stride} x {h * stride} px and the margin around them"
        )
    if not block_bytes:
        block_bytes = CPU_BLOCK_BYTES if jax.default_backend() == "cpu" else DEVICE_BLOCK_BYTES
    plan = _Plan(side, stride, float(bound), rows_per_block(h, w, side * side, block_bytes))
    bordered = _with_border(planes, margin, side // 2)
    phases, moments = _stream(_split_columns(bordered, h, w, plan), features, weight, bias, plan)
    filtered = jnp.moveaxis(phases, 0, -1).reshape(channels, h * stride, w * stride)
    return filtered[:, :height, :width], moments


def _with_border(planes: Float[Array, "D y x"], margin: int, radius: int) -> Float[Array, "D y2 x2"]:
    """An image with another margin: cut, or continued by its last pixel."""
    cut, added = max(margin - radius, 0), max(radius - margin, 0)
    inside = planes[:, cut : planes.shape[1] - cut, cut : planes.shape[2] - cut]
    return jnp.pad(inside, ((0, 0), (added, added), (added, added)), mode="edge")


def _split_columns(bordered, h: int, w: int, plan: _Plan) -> Float[Array, "E D y x"]:
    """An image with half a kernel around it, every stride-th column together: [e, :, y, x] is column stride * x + e.

    A tap at column offset stride * a + b reads [b : b + stride, :, :, a : a + w] for the block columns at hand, so that weights
    of blocks multiply neighbours in memory. E = 2 * stride - 1.
    """
    radius, stride = plan.side // 2, plan.stride
    _, height, width = bordered.shape
    columns = w + 2 * radius // stride
    below, right = h * stride + 2 * radius - height, (columns + 1) * stride - width
    padded = jnp.pad(bordered, ((0, 0), (0, below), (0, right)), mode="edge")
    split = jnp.moveaxis(padded.reshape(*padded.shape[:2], columns + 1, stride), -1, 0)
    return jnp.concatenate([split[..., :columns], split[: stride - 1, ..., 1:]])


def _tap_table(plan: _Plan):
    """Phase, row and column where each tap starts to read, and its five moments."""
    tap = np.arange(plan.side**2)
    dy, dx = tap // plan.side, tap % plan.side
    starts = np.stack([dx % plan.stride, dy, dx // plan.stride], axis=-1).astype(np.int32)
    return jnp.asarray(starts), jnp.asarray(tap_moments(plan.side).T)


class _Block:
    """Where one block of rows lies in each array."""

    def __init__(self, index, h: int, w: int, channels: int, plan: _Plan):
        rows, stride = plan.rows, plan.stride
        self.start = jnp.minimum(index * rows, h - rows)  # the last block begins in the one before it
        self.fresh = (self.start + jnp.arange(rows) >= index * rows).astype(jnp.float32)
        self.coarse, self.fine = (rows, w), (stride, channels, rows * stride, w)
        self.by_row = (stride, channels, rows, stride, w)
        self.slab_rows = rows * stride + 2 * (plan.side // 2)
        self.stride = stride

    def take(self, array, axis: int, size: int, scale: int = 1):
        return jax.lax.dynamic_slice_in_dim(array, self.start * scale, size, axis)

    def put(self, array, part, axis: int, scale: int = 1):
        return jax.lax.dynamic_update_slice_in_dim(array, part, self.start * scale, axis)

    def slab(self, split):
        return self.take(split, 2, self.slab_rows, self.stride)

    def read_tap(self, slab, start):
        phase, dy, column = start
        return jax.lax.dynamic_slice(slab, (phase, 0, dy, column), self.fine)


def _logits(block: _Block, features, weight, bias):
    """Features [n F] of a block and its logits [KK n], not yet clipped."""
    x = block.take(features, 0, block.coarse[0]).reshape(-1, features.shape[-1])
    return x, jax.lax.dot_general(weight, x, (((0,), (1,)), ((), ()))) + bias[:, None]


def _clip(logits, bound: float):
    return jnp.asarray(clip_with_return(logits, bound)) if bound else logits


def _floor(bound: float) -> float:
    """What is taken off exp(logit - bound) of every tap."""
    return FLOOR * math.exp(-2.0 * bound) if bound else 0.0


def kernels_of(logits: Float[Array, "*S KK"], bound: float) -> Float[Array, "*S KK"]:
    """Kernels whose logits are at hand: softmax of the clipped logits, less its floor."""
    if not bound:
        return jax.nn.softmax(logits, axis=-1)
    taps = jnp.exp(_clip(logits, bound) - bound) - _floor(bound)
    return taps / jnp.sum(taps, axis=-1, keepdims=True)


def _peak(logits, bound: float):
    """What is subtracted before exp; a scan, because XLA's CPU code for a maximum over the leading axis is scalar."""
    if bound:
        return jnp.full(logits.shape[1:], bound)
    return jax.lax.scan(lambda m, x: (jnp.maximum(m, x), None), logits[0], logits)[0]


def _forward(split, features, weight, bias, plan: _Plan):
    h, w, _ = features.shape
    channels = split.shape[1]
    starts, moments = _tap_table(plan)
    basis = jnp.concatenate([jnp.ones((1, plan.side**2)), moments.T])

    def add_block(carry, index):
        filtered, found, normalizer = carry
        block = _Block(index, h, w, channels, plan)
        logits = _clip(_logits(block, features, weight, bias)[1], plan.bound)
        peak = _peak(logits, plan.bound)
        weights = jnp.exp(logits - peak[None]) - _floor(plan.bound)
        sums = jnp.dot(basis, weights, precision=EXACT)
        slab = block.slab(split)

        def add_tap(total, tap):
            start, weight = tap
            part = block.read_tap(slab, start).reshape(block.by_row)
            return total + weight.reshape(1, 1, -1, 1, w) * part, None

        zeros = jnp.zeros(block.by_row)
        total = jax.lax.scan(add_tap, zeros, (starts, weights))[0]
        total = total / sums[0].reshape(1, 1, -1, 1, w)
        filtered = block.put(filtered, total.reshape(block.fine), 2, plan.stride)
        found = block.put(found, (sums[1:] / sums[:1]).reshape(5, *block.coarse), 1)
        normalizer = block.put(normalizer, (peak + jnp.log(sums[0])).reshape(block.coarse), 0)
        return (filtered, found, normalizer), None

    carry = (
        jnp.zeros((plan.stride, channels, h * plan.stride, w)),
        jnp.zeros((5, h, w)),
        jnp.zeros((h, w)),
    )
    return jax.lax.scan(add_block, carry, jnp.arange(-(-h // plan.rows)))[0]


def _outputs(split, features, weight, bias, plan: _Plan):
    return _forward(split, features, weight, bias, plan)[:2]


def _stream_fwd(split, features, weight, bias, plan: _Plan):
    filtered, found, normalizer = _forward(split, features, weight, bias, plan)
    return (filtered, found), (split, features, weight, bias, filtered, found, normalizer)


def _stream_bwd(plan: _Plan, residuals, cotangents):
    split, features, weight, bias, filtered, found, normalizer = residuals
    h, w, num_features = features.shape
    table, channels, bound = _tap_table(plan), split.shape[1], plan.bound

    def add_block(carry, index):
        d_split, d_features, d_weight, d_bias = carry
        block = _Block(index, h, w, channels, plan)
        x, logits = _logits(block, features, weight, bias)
        log_sum = block.take(normalizer, 0, plan.rows)
        floor = _floor(bound) * jnp.exp(bound - log_sum)
        slab = block.slab(split)
        rows = plan.rows * plan.stride
        g = block.take(cotangents[0], 2, rows, plan.stride).reshape(block.by_row) * block.fresh.reshape(1, 1, -1, 1, 1)
        g_found = block.take(cotangents[1], 1, plan.rows) * block.fresh.reshape(1, -1, 1)
        # sum_k h_k dh_k, from the outputs
        inner = _dot(g, block.take(filtered, 2, rows, plan.stride).reshape(block.by_row))
        inner += jnp.sum(g_found * block.take(found, 1, plan.rows), axis=0)

        def tap_gradients(d_slab, tap):
            (start, moment), raw = tap
            logit, pull = jax.vjp(lambda x: _clip(x, bound), raw.reshape(block.coarse))
            slope = jnp.exp(logit - log_sum)
            kernel = slope - floor
            d_kernel = _dot(g, block.read_tap(slab, start).reshape(block.by_row)) - inner
            d_kernel += sum(moment[i] * g_found[i] for i in range(5))
            (d_logit,) = pull(slope * d_kernel)
            phase, dy, column = start
            added = block.read_tap(d_slab, start) + (kernel[None, None, :, None] * g).reshape(block.fine)
            return jax.lax.dynamic_update_slice(d_slab, added, (phase, 0, dy, column)), d_logit.reshape(-1)

        d_slab, d_logits = jax.lax.scan(tap_gradients, jnp.zeros_like(slab), (table, logits))
        d_x = jax.lax.dot_general(d_logits, weight, (((0,), (1,)), ((), ()))).reshape(plan.rows, w, num_features)
        return (
            block.put(d_split, block.slab(d_split) + d_slab, 2, plan.stride),
            block.put(d_features, block.take(d_features, 0, plan.rows) + d_x, 0),
            d_weight + jax.lax.dot_general(x, d_logits, (((0,), (1,)), ((), ()))),
            d_bias + d_logits @ jnp.ones(d_logits.shape[1]),
        ), None

    zeros = jax.tree.map(jnp.zeros_like, (split, features, weight, bias))
    return jax.lax.scan(add_block, zeros, jnp.arange(-(-h // plan.rows)))[0]


def _dot(a: Float[Array, "s D r s w"], b: Float[Array, "s D r s w"]) -> Float[Array, "r w"]:
    """Sum over channels and the pixels of a block, unrolled: XLA's CPU code for such a reduction is not vectorised."""
    stride, channels = a.shape[:2]
    each = [(j, c, i) for j in range(stride) for c in range(channels) for i in range(stride)]
    return functools.reduce(jnp.add, [a[j, c, :, i] * b[j, c, :, i] for j, c, i in each])


_stream = jax.custom_vjp(_outputs, nondiff_argnums=(4,))
_stream.defvjp(_stream_fwd, _stream_bwd)
