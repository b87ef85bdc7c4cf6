"""The blur of a training photograph: one kernel for each pixel, blended by the mask.

blurred(x) = m(x) * sum_k h_k(x) C(x + k) + (1 - m(x)) * C(x)        (Peng et al. 2024, BAGS, eq. 4)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.blur.blocks import repeat_blocks
from bags_jax.ops.blur.kernels import kernel_side, kernels_of, tap_moments
from bags_jax.ops.blur.stream import rows_per_block, stream_blur
from bags_jax.structs import BlurField, BlurMoments

__all__ = ["blur", "kernel_side", "kernels_of", "rows_per_block", "stream_blur", "tap_moments"]


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
