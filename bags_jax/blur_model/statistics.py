"""Statistics of blur kernels from their moments: centroid, width, direction; and means over a view.

Kernel and mask of a pixel have one meaning only together: m h + (1 - m) delta says where the light of the pixel comes from,
and other pairs of h and m say the same. `whole_kernels` is that sum, and `share_from_elsewhere` the least mask that can make it.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from bags_jax.numerics import EXACT, safe_sqrt
from bags_jax.ops.blur.blocks import mean_blocks
from bags_jax.ops.blur.kernels import kernel_side, kernels_of, tap_moments
from bags_jax.structs import BlurField, BlurMoments

LEAST_WIDTH_PX = 0.1  # smallest width that is told apart


@struct.dataclass
class KernelStatistics:
    """Statistics of kernels of any leading shape S, px of the image that they blur."""

    centroid: Float[Array, "*S 2"]  # dx, dy
    rms_width: Float[Array, "*S"]  # sqrt of the trace of the second moment about the centroid
    direction: Float[Array, "*S"]  # of the longest axis, degrees in [0, 180), from +x towards +y (down)
    anisotropy: Float[Array, "*S"]  # 0 round .. 1 a line


def kernel_statistics(kernels: Float[Array, "*S KK"]) -> KernelStatistics:
    """First and second moments of kernels whose taps sum to 1."""
    moments = jnp.matmul(kernels, tap_moments(kernel_side(kernels.shape[-1])).T, precision=EXACT)
    return _statistics(moments[..., :2], moments[..., 2:])


def pixel_statistics(moments: BlurMoments) -> KernelStatistics:
    """Statistics of the whole kernel of every pixel of a view, S = h w. What is not masked adds nothing to the moments."""
    first, second = (jnp.moveaxis(moments.mask[None] * x, 0, -1) for x in (moments.centroid, moments.second))
    return _statistics(first, second)


def whole_kernels(kernels: Float[Array, "*S KK"], mask: Float[Array, "*S"]) -> Float[Array, "*S KK"]:
    """Where the light of each pixel comes from: its kernel times its mask, and the rest at the centre."""
    centre = jnp.zeros(kernels.shape[-1]).at[kernels.shape[-1] // 2].set(1.0)
    return mask[..., None] * kernels + (1.0 - mask[..., None]) * centre.reshape((1,) * mask.ndim + (-1,))


def share_from_elsewhere(field: BlurField) -> Float[Array, "h w"]:
    """Share of the light of each pixel (block) that comes from other pixels: the least mask that makes the same blur.

    0: the pixel is sharp. It is mask times (1 - centre tap of the kernel): 1 - m h_0 - (1 - m). The kernels of one row of the
    field exist at a time.
    """

    def of_row(row):
        features, mask = row
        kernels = kernels_of(features @ field.weight + field.bias[None], field.bound)
        return mask * (1.0 - kernels[:, kernels.shape[-1] // 2])

    return jax.lax.map(of_row, (field.features, field.mask))


def shares(valid: Bool[Array, "H W"], stride: int) -> Float[Array, "h w"]:
    """Share of each block in the valid pixels of an image: the weights of a mean over a padded photograph."""
    inside = mean_blocks(valid.astype(jnp.float32), stride)
    return inside / jnp.sum(inside)


@struct.dataclass
class MeanBlur:
    """Means over a view of mask times kernel moments, which are about each pixel. Where the mask is 0 a pixel adds 0."""

    mask: Float[Array, ""]
    centroid: Float[Array, "2"]  # dx, dy, px
    second: Float[Array, "3"]  # xx, xy, yy, px^2
    squared_centroid: Float[Array, ""]  # px^2: drift between kernels and scene, pixel by pixel

    @property
    def squared_width(self) -> Float[Array, ""]:
        """Mean of the squares of `masked_widths`, px^2, for shares that sum to 1."""
        return self.second[0] + self.second[2] + LEAST_WIDTH_PX**2


def mean_blur(moments: BlurMoments, share: Float[Array, "h w"] | None = None) -> MeanBlur:
    """Mean blur of a view, in one reduction.

    Args:
      moments: of one view.
      share: as `shares` returns it; None: all blocks count the same.
    """
    one, squares = jnp.ones_like(moments.mask)[None], jnp.sum(moments.centroid**2, axis=0, keepdims=True)
    of_pixels = moments.mask[None] * jnp.concatenate([one, moments.centroid, moments.second, squares])
    means = mean_over(of_pixels, share)
    return MeanBlur(means[0], means[1:3], means[3:6], means[6])


def view_statistics(moments: BlurMoments, share: Float[Array, "h w"] | None = None) -> KernelStatistics:
    """Statistics of the mean kernel of a view; arguments as those of `mean_blur`."""
    blur = mean_blur(moments, share)
    return _statistics(blur.centroid, blur.second)


def mean_over(values: Float[Array, "*S h w"], share: Float[Array, "h w"] | None) -> Float[Array, "*S"]:
    """Mean over a view, weighted by the share of each block; None: all blocks count the same."""
    if share is None:
        return jnp.mean(values, axis=(-2, -1))
    return jnp.sum(jnp.expand_dims(share, tuple(range(values.ndim - 2))) * values, axis=(-2, -1))


def masked_widths(moments: BlurMoments) -> Float[Array, "h w"]:
    """RMS distance that each pixel's blur reaches from the pixel itself, the unmasked part included, px of that image.

    LEAST_WIDTH_PX is added in square, so that the gradient is finite and the smallest widths are alike.
    """
    return jnp.sqrt(moments.mask * (moments.second[0] + moments.second[2]) + LEAST_WIDTH_PX**2)


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
