"""The 2D blur model's arithmetic: apply one kernel per pixel, blend by the mask, describe what blur was found.

  blurred(x) = m(x) * sum_k h_k(x) C(x + k) + (1 - m(x)) * C(x)        (Peng et al. 2024, BAGS, eq. 4)

Kernels are constant over blocks of stride x stride px (stride 1: one kernel a pixel). Patches are never unfolded: the sum
streams over rows of taps, and the backward pass streams once more.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from bags_jax.numerics import safe_sqrt
from bags_jax.structs import BlurField


@struct.dataclass
class KernelStatistics:
    """Moments of kernels, px of the image that they are applied to; a leading shape S of the kernels is kept."""

    centroid: Float[Array, "*S 2"]  # dx, dy
    rms_width: Float[Array, "*S"]  # sqrt of the trace of the second moment about the centroid
    direction: Float[Array, "*S"]  # of the longest axis, degrees in [0, 180), from +x towards +y (down)
    anisotropy: Float[Array, "*S"]  # 0 round .. 1 a line


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


def blur(image: Float[Array, "H W D"], field: BlurField, *, stride: int = 1) -> Float[Array, "H W D"]:
    """Blurs a sharp render as a training photograph was blurred; borders are continued by their last pixel.

    Differentiable in the image, the kernels and the mask.
    """
    height, width, _ = image.shape
    planes = jnp.moveaxis(image, -1, 0)
    filtered = apply_kernels(planes, field.kernels, stride)
    mask = repeat_blocks(field.mask, stride, height, width)
    return jnp.moveaxis(planes + mask[None] * (filtered - planes), 0, -1)


def repeat_blocks(coarse: Float[Array, "*S h w"], stride: int, height: int, width: int) -> Float[Array, "*S H W"]:
    """Each value of a coarse field for every pixel of its block."""
    if stride == 1:
        return coarse
    *lead, h, w = coarse.shape
    blocks = jnp.broadcast_to(coarse[..., :, None, :, None], (*lead, h, stride, w, stride))
    return blocks.reshape(*lead, h * stride, w * stride)[..., :height, :width]


def mean_blocks(image: Float[Array, "H W *D"], stride: int) -> Float[Array, "h w *D"]:
    """Mean over blocks of stride x stride px; blocks that reach over the border see its last pixel repeated."""
    if stride == 1:
        return image
    height, width = image.shape[:2]
    padding = [(0, -height % stride), (0, -width % stride)] + [(0, 0)] * (image.ndim - 2)
    padded = jnp.pad(image, padding, mode="edge")
    h, w = padded.shape[0] // stride, padded.shape[1] // stride
    return padded.reshape(h, stride, w, stride, *image.shape[2:]).mean(axis=(1, 3))


def apply_kernels(planes: Float[Array, "D H W"], kernels: Float[Array, "KK h w"], stride: int) -> Float[Array, "D H W"]:
    """Weighted sum of shifted images, weights per pixel (block): sum_k h_k(x) C(x + k)."""
    radius = kernel_side(kernels.shape[0]) // 2
    padded = jnp.pad(planes, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    return _gather_taps(padded, kernels, stride, *planes.shape[1:])


def _taps(side: int):
    """Index, dy and dx of each tap, counted from the upper left one."""
    tap = jnp.arange(side * side)
    return tap, tap // side, tap % side


def _gather(padded, kernels, stride: int, height: int, width: int) -> Float[Array, "D H W"]:
    channels = padded.shape[0]

    def add_tap(total, tap):
        index, dy, dx = tap
        weight = repeat_blocks(kernels[index], stride, height, width)
        return total + weight[None] * jax.lax.dynamic_slice(padded, (0, dy, dx), (channels, height, width)), None

    return jax.lax.scan(add_tap, jnp.zeros((channels, height, width)), _taps(kernel_side(kernels.shape[0])))[0]


def _gather_fwd(padded, kernels, stride, height, width):
    return _gather(padded, kernels, stride, height, width), (padded, kernels)


def _gather_bwd(stride, height, width, residuals, g):
    padded, kernels = residuals
    shape = (padded.shape[0], height, width)

    def tap_gradients(d_padded, tap):
        index, dy, dx = tap
        corner = (0, dy, dx)
        weight = repeat_blocks(kernels[index], stride, height, width)
        d_weight = _dot_channels(g, jax.lax.dynamic_slice(padded, corner, shape))
        below = jax.lax.dynamic_slice(d_padded, corner, shape)
        return jax.lax.dynamic_update_slice(d_padded, below + weight[None] * g, corner), _sum_blocks(d_weight, stride)

    return jax.lax.scan(tap_gradients, jnp.zeros_like(padded), _taps(kernel_side(kernels.shape[0])))


def _dot_channels(a: Float[Array, "D H W"], b: Float[Array, "D H W"]) -> Float[Array, "H W"]:
    """Sum over channels, unrolled: XLA's CPU code for a reduction over the leading axis is not vectorised."""
    return functools.reduce(jnp.add, [a[c] * b[c] for c in range(a.shape[0])])


def _sum_blocks(plane: Float[Array, "H W"], stride: int) -> Float[Array, "h w"]:
    """Sum over blocks of stride x stride px: the transpose of repeat_blocks."""
    height, width = plane.shape
    padded = jnp.pad(plane, ((0, -height % stride), (0, -width % stride)))
    parts = [padded[i::stride, j::stride] for i in range(stride) for j in range(stride)]
    return functools.reduce(jnp.add, parts)


_gather_taps = jax.custom_vjp(_gather, nondiff_argnums=(2, 3, 4))
_gather_taps.defvjp(_gather_fwd, _gather_bwd)


def mean_kernel(field: BlurField) -> Float[Array, "KK"]:
    """The kernel of a whole view: its kernels weighted by the mask, with the unmasked rest at the centre."""
    num_taps = field.kernels.shape[0]
    masked = jnp.mean(field.kernels * field.mask[None], axis=(1, 2))
    return masked.at[num_taps // 2].add(1.0 - jnp.mean(field.mask))


def kernel_statistics(kernels: Float[Array, "*S KK"]) -> KernelStatistics:
    """First and second moments of kernels whose taps sum to 1."""
    offsets = tap_offsets(kernel_side(kernels.shape[-1]))
    centroid = kernels @ offsets
    xx = kernels @ (offsets[:, 0] ** 2) - centroid[..., 0] ** 2
    yy = kernels @ (offsets[:, 1] ** 2) - centroid[..., 1] ** 2
    xy = kernels @ (offsets[:, 0] * offsets[:, 1]) - centroid[..., 0] * centroid[..., 1]
    spread = safe_sqrt((xx - yy) ** 2 + 4.0 * xy**2)
    return KernelStatistics(
        centroid=centroid,
        rms_width=safe_sqrt(xx + yy),
        direction=jnp.degrees(0.5 * jnp.arctan2(2.0 * xy, xx - yy)) % 180.0,
        anisotropy=spread / jnp.maximum(xx + yy, 1e-9),
    )


def resize_taps(side: int, new_side: int, zoom: float) -> Float[np.ndarray, "KK_new KK"]:
    """Linear map that enlarges kernel logits by `zoom` about the centre (bilinear, continued by the last tap).

    It hands a kernel over from one image scale to the next: the same blur covers `zoom` times as many pixels.
    """
    position = np.clip((np.arange(new_side) - new_side // 2) / zoom + side // 2, 0, side - 1)
    below = np.minimum(np.floor(position).astype(int), max(side - 2, 0))
    line = np.zeros((new_side, side), np.float32)
    line[np.arange(new_side), below] += 1.0 - (position - below)
    line[np.arange(new_side), np.minimum(below + 1, side - 1)] += position - below
    return np.kron(line, line)
