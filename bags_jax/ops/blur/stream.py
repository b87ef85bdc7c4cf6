"""Kernels of all pixels applied to an image, block of rows after block of rows.

  logits = clip(features @ weight + bias),  h = softmax(logits) less its floor,  filtered(x) = sum_k h_k(x) C(x + k)

This is local attention with one key for each offset. It runs over blocks of rows that fit a budget of memory and keeps its
inputs and outputs alone; the backward pass makes the logits of a block again and uses, as Rabe & Staats (2021) and Dao et
al. (2022) do, that sum_k h_k dh_k is the product of the output with its gradient. Memory is that of a few images.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.blur import xla
from bags_jax.ops.blur.cpu import binding as cpu
from bags_jax.ops.blur.cuda import binding as cuda
from bags_jax.ops.blur.kernels import Filtered, Plan, kernel_side
from bags_jax.platforms import current_platform

CPU_BLOCK_BYTES = 2 << 20  # logits of one block: in the caches of a CPU
DEVICE_BLOCK_BYTES = 100 << 20  # on an accelerator: few launches


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
    Differentiable in all arrays, once, in reverse mode.
    """
    planes, features, weight, bias = (jnp.asarray(x, jnp.float32) for x in (planes, features, weight, bias))
    side = kernel_side(weight.shape[1])
    h, w, _ = features.shape
    channels, height, width = planes.shape[0], planes.shape[1] - 2 * margin, planes.shape[2] - 2 * margin
    if (-(-height // stride), -(-width // stride)) != (h, w):
        raise ValueError(
            f"an image of {planes.shape[2]} x {planes.shape[1]} px with a margin of {margin} px came with kernels for {w} x {h} blocks "
            f"of {stride} px, expected {w * stride} x {h * stride} px and the margin around them"
        )
    if not block_bytes:
        block_bytes = CPU_BLOCK_BYTES if current_platform() == "cpu" else DEVICE_BLOCK_BYTES
    plan = Plan(side, stride, float(bound), rows_per_block(h, w, side * side, block_bytes))
    method = next((own for own in (cuda, cpu) if own.can_run(plan, channels)), xla)
    split = method.split(_with_border(planes, margin, side // 2), h, w, plan)
    filtered, moments = _stream(split, features, weight, bias, plan, method)
    return method.join(filtered)[:, :height, :width], moments


def _with_border(planes: Float[Array, "D y x"], margin: int, radius: int) -> Float[Array, "D y2 x2"]:
    """An image with another margin: cut, or continued by its last pixel."""
    cut, added = max(margin - radius, 0), max(radius - margin, 0)
    inside = planes[:, cut : planes.shape[1] - cut, cut : planes.shape[2] - cut]
    return jnp.pad(inside, ((0, 0), (added, added), (added, added)), mode="edge")


class _Block:
    """Where one block of rows lies in each array: in fields, in images as large as they are, and in what kernels read."""

    def __init__(self, index, h: int, plan: Plan):
        self._plan = plan
        self._start = jnp.minimum(index * plan.rows, h - plan.rows)  # the last block begins in the one before it
        self.fresh = (self._start + jnp.arange(plan.rows) >= index * plan.rows).astype(jnp.float32)

    def rows(self, field, axis: int):
        return jax.lax.dynamic_slice_in_dim(field, self._start, self._plan.rows, axis)

    def put_rows(self, field, part, axis: int):
        return jax.lax.dynamic_update_slice_in_dim(field, part, self._start, axis)

    def pixels(self, image):
        start, size = self._start * self._plan.stride, self._plan.rows * self._plan.stride
        return jax.lax.dynamic_slice_in_dim(image, start, size, 2)

    def slab(self, split):
        size = self._plan.rows * self._plan.stride + 2 * (self._plan.side // 2)
        return jax.lax.dynamic_slice_in_dim(split, self._start * self._plan.stride, size, 2)

    def put_pixels(self, image, part):
        return jax.lax.dynamic_update_slice_in_dim(image, part, self._start * self._plan.stride, 2)

    def filtered(self, whole: Filtered) -> Filtered:
        return Filtered(self.pixels(whole.image), self.rows(whole.moments, 1), self.rows(whole.normalizer, 0))

    def put_filtered(self, whole: Filtered, part: Filtered) -> Filtered:
        image, moments, normalizer = part
        return Filtered(
            self.put_pixels(whole.image, image),
            self.put_rows(whole.moments, moments, 1),
            self.put_rows(whole.normalizer, normalizer, 0),
        )

    def logits(self, features, weight, bias):
        """Features [n F] of the block and its logits [KK n], not yet clipped."""
        x = self.rows(features, 0).reshape(-1, features.shape[-1])
        return x, jax.lax.dot_general(weight, x, (((0,), (1,)), ((), ()))) + bias[:, None]


def _forward(split, features, weight, bias, plan: Plan, method) -> Filtered:
    h, w, _ = features.shape

    def add_block(filtered, index):
        block = _Block(index, h, plan)
        logits = block.logits(features, weight, bias)[1]
        return block.put_filtered(filtered, method.filter_rows(block.slab(split), logits, plan)), None

    phases, channels = (split.shape[0] + 1) // 2, split.shape[1]
    image = jnp.zeros((phases, channels, h * plan.stride, w * plan.stride // phases))
    whole = Filtered(image, jnp.zeros((5, h, w)), jnp.zeros((h, w)))
    return jax.lax.scan(add_block, whole, jnp.arange(-(-h // plan.rows)))[0]


def _outputs(split, features, weight, bias, plan: Plan, method):
    return _forward(split, features, weight, bias, plan, method)[:2]


def _stream_fwd(split, features, weight, bias, plan: Plan, method):
    filtered = _forward(split, features, weight, bias, plan, method)
    return filtered[:2], (split, features, weight, bias, filtered)


def _stream_bwd(plan: Plan, method, residuals, cotangents):
    split, features, weight, bias, filtered = residuals
    h, w, num_features = features.shape

    def add_block(carry, index):
        d_split, d_features, d_weight, d_bias = carry
        block = _Block(index, h, plan)
        x, logits = block.logits(features, weight, bias)
        slab, fresh = block.slab(split), block.fresh
        d_image = block.pixels(cotangents[0]) * jnp.repeat(fresh, plan.stride)[None, None, :, None]
        d_moments = block.rows(cotangents[1], 1) * fresh[None, :, None]
        found = block.filtered(filtered)
        d_slab, d_logits = method.filter_rows_gradient(slab, logits, found, d_image, d_moments, plan)
        d_x = jax.lax.dot_general(d_logits, weight, (((0,), (1,)), ((), ()))).reshape(plan.rows, w, num_features)
        return (
            block.put_pixels(d_split, block.slab(d_split) + d_slab),
            block.put_rows(d_features, block.rows(d_features, 0) + d_x, 0),
            d_weight + jax.lax.dot_general(x, d_logits, (((0,), (1,)), ((), ()))),
            d_bias + d_logits @ jnp.ones(d_logits.shape[1]),
        ), None

    zeros = jax.tree.map(jnp.zeros_like, (split, features, weight, bias))
    return jax.lax.scan(add_block, zeros, jnp.arange(-(-h // plan.rows)))[0]


_stream = jax.custom_vjp(_outputs, nondiff_argnums=(4, 5))
_stream.defvjp(_stream_fwd, _stream_bwd)
