"""`blur`: blurs a render like a training photograph, with one kernel per pixel (block), blended by the mask.

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
    image: Float[Array, "H_all W_all D"],
    field: BlurField,
    *,
    stride: int = 1,
    margin: int = 0,
    block_bytes: int = 0,
    backend: str = "auto",
) -> tuple[Float[Array, "H W D"], BlurMoments]:
    """Blurs a sharp render like a training photograph.

    Args:
      image: the sharp render with `margin` px around the photograph, from where blur carries light into the photograph.
        Beyond the margin the last pixel is repeated.
      field: one kernel for each block of stride x stride px.
      stride: side of the blocks of pixels that share a kernel, px.
      margin: px on each side that are not in the photograph.
      block_bytes: memory of the logits that exist at a time; 0: chosen for the platform.
      backend: see `stream_blur`.
    Returns:
      The blurred image without the margin, and the moments of its kernels.
    Raises:
      ValueError: sizes of image and field do not fit, or a backend is unknown or cannot run on this machine.
    Differentiable in the image and all arrays of the field, once, in reverse mode.
    """
    planes = jnp.moveaxis(image, -1, 0)
    layer, options = (
        (field.features, field.weight, field.bias),
        {"margin": margin, "block_bytes": block_bytes, "backend": backend},
    )
    filtered, moments = stream_blur(planes, *layer, stride=stride, bound=field.bound, **options)
    _, height, width = filtered.shape
    planes = planes[:, margin : margin + height, margin : margin + width]
    mask = repeat_blocks(field.mask, stride, height, width)
    blurred = jnp.moveaxis(planes + mask[None] * (filtered - planes), 0, -1)
    return blurred, BlurMoments(mask=field.mask, centroid=moments[:2], second=moments[2:])
