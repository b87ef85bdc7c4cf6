"""The 2D blur model's arithmetic: apply one kernel per pixel, blend by the mask, describe what blur was found.

  blurred(x) = m(x) * sum_k h_k(x) C(x + k) + (1 - m(x)) * C(x)        (Peng et al. 2024, BAGS, eq. 4)

Kernels are constant over blocks of stride x stride px (stride 1: one kernel a pixel). `blur` never makes them: what there is to
know of them comes as moments from the pass that applies them (blur_stream/). For single pixels there is `kernels_at`;
`every_kernel` and `apply_kernels` are the same the long way, for kernels that are at hand and as the oracle.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from bags_jax.blur_stream import kernel_side, kernels_of, stream_blur, tap_moments
from bags_jax.numerics import EXACT, safe_sqrt
from bags_jax.structs import BlurField, BlurMoments

LEAST_WIDTH_PX = 0.1  # differences far below it are as good as none


@struct.dataclass
class KernelStatistics:
    """What moments say of kernels, px of the image that they are applied to; a leading shape S of the kernels is kept."""

    centroid: Float[Array, "*S 2"]  # dx, dy
    rms_width: Float[Array, "*S"]  # sqrt of the trace of the second moment about the centroid
    direction: Float[Array, "*S"]  # of the longest axis, degrees in [0, 180), from +x towards +y (down)
    anisotropy: Float[Array, "*S"]  # 0 round .. 1 a line


def blur(
    image: Float[Array, "H_all W_all D"], field: BlurField, *, stride: int = 1, margin: int = 0, block_bytes: int = 0
) -> tuple[Float[Array, "H W D"], BlurMoments]:
    """Blurs a sharp render as a training photograph was blurred.

    Args:
      image: the sharp render, and so much around it as `margin` says: light that blur carries into the photograph. Beyond,
        its last pixel goes on.
      field: its blur, one kernel for each block of stride x stride px.
      margin: px on each side that are not in the photograph.
      block_bytes: memory of kernels at a time; 0: as suits the backend.
    Returns:
      the blurred image without the margin, and the moments of the kernels that blurred it.
    Differentiable in the image and all arrays of the field.
    """
    planes = jnp.moveaxis(image, -1, 0)
    layer, sizes = (field.features, field.weight, field.bias), {"margin": margin, "block_bytes": block_bytes}
    filtered, moments = stream_blur(planes, *layer, stride=stride, bound=field.bound, **sizes)
    _, height, width = filtered.shape
    planes = planes[:, margin : margin + height, margin : margin + width]
    mask = repeat_blocks(field.mask, stride, height, width)
    blurred = jnp.moveaxis(planes + mask[None] * (filtered - planes), 0, -1)
    return blurred, BlurMoments(mask=field.mask, centroid=moments[:2], second=moments[2:])


def kernels_at(
    field: BlurField, rows: Int[Array | np.ndarray, "*S"], columns: Int[Array | np.ndarray, "*S"]
) -> Float[Array, "*S KK"]:
    """The kernels of single pixels of the field."""
    logits = jnp.dot(field.features[rows, columns], field.weight)
    return kernels_of(logits + field.bias.reshape((1,) * (logits.ndim - 1) + (-1,)), field.bound)


def every_kernel(field: BlurField) -> Float[Array, "KK h w"]:
    """All kernels of a field: 4.4 GiB for 17 x 17 taps at 2400 x 1600."""
    h, w, _ = field.features.shape
    rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    return jnp.moveaxis(kernels_at(field, rows, columns), -1, 0)


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


def kernel_statistics(kernels: Float[Array, "*S KK"]) -> KernelStatistics:
    """First and second moments of kernels whose taps sum to 1."""
    moments = jnp.matmul(kernels, tap_moments(kernel_side(kernels.shape[-1])).T, precision=EXACT)
    return _statistics(moments[..., :2], moments[..., 2:])


def pixel_statistics(moments: BlurMoments) -> KernelStatistics:
    """kernel_statistics of every kernel of a view, S = h w."""
    return _statistics(jnp.moveaxis(moments.centroid, 0, -1), jnp.moveaxis(moments.second, 0, -1))


def shares(valid: Bool[Array, "H W"], stride: int) -> Float[Array, "h w"]:
    """The part that each block has in the valid pixels of an image: weights of a mean over a photograph that is padded."""
    inside = mean_blocks(valid.astype(jnp.float32), stride)
    return inside / jnp.sum(inside)


def view_statistics(moments: BlurMoments, share: Float[Array, "h w"] | None = None) -> KernelStatistics:
    """kernel_statistics of the mean kernel of a view: the unmasked rest is at the centre, where it adds to no moment.

    Args:
      moments: of a view.
      share: see shares; None: all blocks count alike.
    """
    return _statistics(*(mean_over(moments.mask[None] * x, share) for x in (moments.centroid, moments.second)))


def mean_over(values: Float[Array, "*S h w"], share: Float[Array, "h w"] | None) -> Float[Array, "*S"]:
    """Mean over a view, by the share of each block; None: all alike."""
    if share is None:
        return jnp.mean(values, axis=(-2, -1))
    return jnp.sum(jnp.expand_dims(share, tuple(range(values.ndim - 2))) * values, axis=(-2, -1))


def masked_widths(moments: BlurMoments) -> Float[Array, "h w"]:
    """RMS distance that each pixel's blur reaches from the pixel itself, the unmasked part included, px of that image.

    LEAST_WIDTH_PX is added in square, so that the gradient is finite and the smallest widths are alike.
    """
    return jnp.sqrt(moments.mask * (moments.second[0] + moments.second[2]) + LEAST_WIDTH_PX**2)


def mean_squared_centroid(moments: BlurMoments, share: Float[Array, "h w"] | None = None) -> Float[Array, ""]:
    """Mean over pixels of mask times squared kernel centroid, px^2: drift between kernels and scene, pixel by pixel."""
    return mean_over(moments.mask * jnp.sum(moments.centroid**2, axis=0), share)


def _statistics(centroid: Float[Array, "*S 2"], second: Float[Array, "*S 3"]) -> KernelStatistics:
    xx = second[..., 0] - centroid[..., 0] ** 2
    xy = second[..., 1] - centroid[..., 0] * centroid[..., 1]
    yy = second[..., 2] - centroid[..., 1] ** 2
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
