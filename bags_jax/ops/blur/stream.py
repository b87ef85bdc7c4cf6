"""`stream_blur`: applies the kernels of all pixels to an image, one block of rows after the other.

  logits = clip(features @ weight + bias),  h = softmax(logits) - floor,  filtered(x) = sum_k h_k(x) C(x + k)

This is local attention with one key per offset. Blocks of rows fit a memory budget, and only inputs and outputs are
stored. The backward pass computes the logits of a block again, and computes sum_k h_k dh_k as the product of the output
and its gradient (Rabe & Staats 2021, Dao et al. 2022). It needs the memory of a few images.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.backends import choose
from bags_jax.ops.blur import xla
from bags_jax.ops.blur.cpu import binding as cpu_binding
from bags_jax.ops.blur.cuda import binding as cuda_binding
from bags_jax.ops.blur.kernels import Filtered, KernelBlock, kernel_side
from bags_jax.ops.limits import COLORS, STRIDES
from bags_jax.platforms import current_platform

IMPLEMENTATIONS = {"cpu": cpu_binding, "cuda": cuda_binding, "xla": xla}
CPU_BLOCK_BYTES = 1 << 20  # logits of one block: fit the L2 cache of a CPU
DEVICE_BLOCK_BYTES = 100 << 20  # on an accelerator: few launches


def rows_per_block(height: int, width: int, num_taps: int, block_bytes: int) -> int:
    """Returns the rows of a coarse field whose logits fit a budget, at least one, for blocks of similar height."""
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
    backend: str = "auto",
) -> tuple[Float[Array, "D h_px w_px"], Float[Array, "5 h w"]]:
    """Applies the kernels `kernels_of(features @ weight + bias)` to an image and computes their moments.

    Args:
      planes: the image, with `margin` px on each side that kernels may read. Beyond, the last pixel is repeated.
      features, weight, bias: the last layer, one kernel for each block of stride x stride px; taps row-major (dy, dx).
      stride: side of the blocks of pixels that share a kernel, px.
      bound: clips logits to +- bound with the gradient of numerics.clip_with_return; 0: no clipping.
      margin: px of the image on each side that have no kernel of their own.
      block_bytes: memory of the logits that exist at a time; 0: chosen for the platform.
      backend: "cpu" is C++, compiled at first use; "cuda" is for NVIDIA GPUs; "xla" runs everywhere; "auto" takes the
        best of this machine. "tpu" runs on "xla". So do, with one warning, D other than 3 and strides above 4.
    Returns:
      filtered: sum_k h_k(x) C(x + k), without the margin.
      moments: sum_k h_k times dx, dy (px), dx dx, dx dy, dy dy (px^2) of each kernel.
    Raises:
      ValueError: the image without its margin does not have the size of the kernels, or a backend that is unknown or
        that this machine cannot run.
    Differentiable in all arrays, once, in reverse mode.
    """
    planes, features, weight, bias = (jnp.asarray(x, jnp.float32) for x in (planes, features, weight, bias))
    side = kernel_side(weight.shape[1])
    h, w, _ = features.shape
    channels, height, width = planes.shape[0], planes.shape[1] - 2 * margin, planes.shape[2] - 2 * margin
    if (-(-height // stride), -(-width // stride)) != (h, w):
        raise ValueError(
            f"an image of {planes.shape[2]} x {planes.shape[1]} px with a margin of {margin} px came with kernels for "
            f"{w} x {h} blocks of {stride} px, expected {w * stride} x {h * stride} px and the margin around them"
        )
    if not block_bytes:
        block_bytes = CPU_BLOCK_BYTES if current_platform() == "cpu" else DEVICE_BLOCK_BYTES
    block = KernelBlock(side, stride, float(bound), rows_per_block(h, w, side * side, block_bytes))
    name = choose("blur", backend, unsupported=_find_unsupported(stride, channels))
    split = IMPLEMENTATIONS[name].split(_with_border(planes, margin, side // 2), h, w, block)
    filtered, moments = _stream(split, features, weight, bias, block, name)
    return IMPLEMENTATIONS[name].join(filtered)[:, :height, :width], moments


def _find_unsupported(stride: int, channels: int) -> str:
    """Returns why only XLA can run these sizes, or ""."""
    if stride in STRIDES and channels == COLORS:
        return ""
    return f"stride {stride} and {channels} channels came, compiled are strides {STRIDES} and {COLORS} channels"


def _with_border(planes: Float[Array, "D y x"], margin: int, radius: int) -> Float[Array, "D y2 x2"]:
    """Changes the margin of an image: cuts pixels, or repeats the last one."""
    cut, added = max(margin - radius, 0), max(radius - margin, 0)
    inside = planes[:, cut : planes.shape[1] - cut, cut : planes.shape[2] - cut]
    return jnp.pad(inside, ((0, 0), (added, added), (added, added)), mode="edge")


class _BlockView:
    """Reads and writes one block of rows in each array: fields, images of their size, and images that kernels read."""

    def __init__(self, index, h: int, block: KernelBlock):
        self._block = block
        self._start = jnp.minimum(index * block.rows, h - block.rows)  # the last block overlaps the block before it
        self.fresh = (self._start + jnp.arange(block.rows) >= index * block.rows).astype(jnp.float32)

    def rows(self, field, axis: int):
        return jax.lax.dynamic_slice_in_dim(field, self._start, self._block.rows, axis)

    def put_rows(self, field, part, axis: int):
        return jax.lax.dynamic_update_slice_in_dim(field, part, self._start, axis)

    def pixels(self, image):
        start, size = self._start * self._block.stride, self._block.rows * self._block.stride
        return jax.lax.dynamic_slice_in_dim(image, start, size, 2)

    def slab(self, split):
        size = self._block.rows * self._block.stride + 2 * (self._block.side // 2)
        return jax.lax.dynamic_slice_in_dim(split, self._start * self._block.stride, size, 2)

    def put_pixels(self, image, part):
        return jax.lax.dynamic_update_slice_in_dim(image, part, self._start * self._block.stride, 2)

    def filtered(self, whole: Filtered) -> Filtered:
        return Filtered(self.pixels(whole.image), self.rows(whole.moments, 1), self.rows(whole.normalizer, 0))

    def put_filtered(self, whole: Filtered, part: Filtered) -> Filtered:
        image, moments, normalizer = part
        return Filtered(
            self.put_pixels(whole.image, image),
            self.put_rows(whole.moments, moments, 1),
            self.put_rows(whole.normalizer, normalizer, 0),
        )

    def features(self, features):
        """The features [n F] of the block."""
        return self.rows(features, 0).reshape(-1, features.shape[-1])


def _logits(x: Float[Array, "n F"], weight: Float[Array, "F KK"], bias: Float[Array, "KK"]) -> Float[Array, "KK n"]:
    """The last layer, not clipped.

    On an accelerator the bias is two more rows of the weight. Adding it would read and write the logits, the largest array of
    a step, once more, and so would its gradient. Two rows, because a product keeps 10 bits of each number (TF32; 7 on a TPU),
    and the bias is larger than the other terms. On a CPU the logits of a block stay in the cache.
    """
    if current_platform() == "cpu":
        return _product(weight, x) + bias[:, None]
    joined = _with_ones(x)
    high = jax.lax.reduce_precision(bias, exponent_bits=8, mantissa_bits=7)
    zeros = jnp.zeros((joined.shape[1] - x.shape[1] - 2, bias.shape[0]))
    return _product(jnp.concatenate([weight, high[None], (bias - high)[None], zeros]), joined)


def _logits_gradient(x, weight, d_logits: Float[Array, "KK n"]):
    """Gradients in features, in the transpose of weight, and in bias. On a CPU the transpose takes half the time."""
    d_x, num = _product(d_logits, weight), x.shape[1]
    if current_platform() == "cpu":
        return d_x, d_logits @ x, d_logits @ jnp.ones(d_logits.shape[1])
    d_rows = _product(_with_ones(x), d_logits)
    return d_x, d_rows[:num].T, d_rows[num]


def _product(a: Float[Array, "k m"], b: Float[Array, "n k"]) -> Float[Array, "m n"]:
    return jax.lax.dot_general(a, b, (((0,), (1,)), ((), ())))


def _with_ones(x: Float[Array, "n F"]) -> Float[Array, "n G"]:
    """Adds two features that are 1, and zeros up to whole float4s."""
    added = [1.0, 1.0] + [0.0] * (-(x.shape[1] + 2) % 4)
    return jnp.concatenate([x, jnp.broadcast_to(jnp.array([added]), (x.shape[0], len(added)))], axis=1)


def _forward(split, features, weight, bias, block: KernelBlock, name: str) -> Filtered:
    h, w, _ = features.shape

    def add_block(filtered, index):
        view = _BlockView(index, h, block)
        logits = _logits(view.features(features), weight, bias)
        return view.put_filtered(filtered, IMPLEMENTATIONS[name].filter_rows(view.slab(split), logits, block)), None

    phases, channels = (split.shape[0] + 1) // 2, split.shape[1]
    image = jnp.zeros((phases, channels, h * block.stride, w * block.stride // phases))
    whole = Filtered(image, jnp.zeros((5, h, w)), jnp.zeros((h, w)))
    return jax.lax.scan(add_block, whole, jnp.arange(-(-h // block.rows)))[0]


def _outputs(split, features, weight, bias, block: KernelBlock, name: str):
    return _forward(split, features, weight, bias, block, name)[:2]


def _stream_fwd(split, features, weight, bias, block: KernelBlock, name: str):
    filtered = _forward(split, features, weight, bias, block, name)
    return filtered[:2], (split, features, weight, bias, filtered)


def _stream_bwd(block: KernelBlock, name: str, residuals, cotangents):
    split, features, weight, bias, filtered = residuals
    h, w, num_features = features.shape

    def add_block(carry, index):
        d_split, d_features, d_weight_t, d_bias = carry
        view = _BlockView(index, h, block)
        x = view.features(features)
        logits = _logits(x, weight, bias)
        slab, fresh = view.slab(split), view.fresh
        d_image = view.pixels(cotangents[0]) * jnp.repeat(fresh, block.stride)[None, None, :, None]
        d_moments = view.rows(cotangents[1], 1) * fresh[None, :, None]
        found = view.filtered(filtered)
        d_slab, d_logits = IMPLEMENTATIONS[name].filter_rows_gradient(slab, logits, found, d_image, d_moments, block)
        d_x, of_weight_t, of_bias = _logits_gradient(x, weight, d_logits)
        return (
            view.put_pixels(d_split, view.slab(d_split) + d_slab),
            view.put_rows(d_features, view.rows(d_features, 0) + d_x.reshape(block.rows, w, num_features), 0),
            d_weight_t + of_weight_t,
            d_bias + of_bias,
        ), None

    zeros = jax.tree.map(jnp.zeros_like, (split, features, weight.T, bias))
    d_split, d_features, d_weight_t, d_bias = jax.lax.scan(add_block, zeros, jnp.arange(-(-h // block.rows)))[0]
    return d_split, d_features, d_weight_t.T, d_bias


_stream = jax.custom_vjp(_outputs, nondiff_argnums=(4, 5))
_stream.defvjp(_stream_fwd, _stream_bwd)
