"""What the training views' blur, as far as it is known, says of a capture: whom to believe, and whether it is sharp at all.

Blur is an RMS width of kernels, px at full image scale, one number a view: what the step last saw. 0: not seen yet.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SHARP_PX = 0.25  # blur under which one view is as good as another
ALIKE_RATIO = 1.5  # of the variances of views that are blurred alike: 1.22 of their widths
ALIKE_PX = 0.5  # blur beyond that which makes no difference: a little more than a pixel itself averages over, 0.41 px
COMMON_PX = 1.5  # blur of a whole capture that may be none: kernels open so far to hide what splats get wrong
NEARLY_ALL = 0.9  # of the views
SHARP_PART = 0.6  # of the median blur: kernels of sharp photographs open to half of it, to hide what splats get wrong
HALF_PRICE_PART = 0.3  # of the median blur, where the price of blur is half way: the same at every image size


def view_confidence(blur_px: Float[Array, "V"], half_at: float) -> Float[Array, "V"]:
    """How much each training view counts for the scene, 1 on average: the sharper, the more.

    What a blurry photograph says of the scene's detail has passed the inverse of its blur, together with all that the blur
    model gets wrong. The blur model itself learns from all views alike, and density control looks at them alike.

    Args:
      blur_px: a view not seen yet is taken to be the median.
      half_at: a view blurred by this many times the median counts half as much as a sharp one; 0: all count the same.
    """
    if not half_at:
        return jnp.ones_like(blur_px)
    # Relative to the median, so that it means the same at every image size, down to what no photograph shows: noise in the
    # kernels of sharp photographs must not make some of them count more.
    seen = blur_px > 0.0
    median = jnp.nan_to_num(_median(blur_px))
    half = (half_at * median) ** 2 + SHARP_PX**2
    weights = half / (half + jnp.where(seen, blur_px, median) ** 2)
    return weights / jnp.mean(weights)


def pose_trust(blur_px: Float[Array, "*V"]) -> Float[Array, "*V"]:
    """How far the capture's pose of a view is to be trusted, 1 / px^2: it is taken to be wrong by as much as the view is blurred.

    Args:
      blur_px: a view not seen yet is taken to be blurred by 1 px.
    """
    return jnp.where(blur_px > 0.0, 1.0 / (blur_px**2 + SHARP_PX**2), 1.0)


def looks_sharp(blur_px: Float[Array, "V"]) -> Bool[Array, ""]:
    """Whether nearly all views are blurred alike, and by little: then kernels fit what splats get wrong, not blur.

    Hands shake and lenses focus otherwise from photograph to photograph, by twice the width and more. What splats get wrong is the
    same in all, whether they are small against the pixel or large. Views not seen yet do not count; while none has been seen, no.
    """
    least, most = jnp.nanquantile(_known(blur_px), jnp.array([1.0 - NEARLY_ALL, NEARLY_ALL]))
    return (most < COMMON_PX) & (most**2 < ALIKE_RATIO * least**2 + ALIKE_PX**2)  # NaN is not less than anything


def sharp_views(blur_px: Float[Array, "V"]) -> Bool[Array, "V"]:
    """Which views are so much sharper than most that the scene should be as sharp as they are, and no sharper.

    Scene and all kernels together may sharpen and widen, by half a pixel of a small image and more of a large one, and no photograph
    tells: the sharpest have to say where that ends.

    Args:
      blur_px: of a scene that is no longer young; a view not seen yet is not sharp.
    """
    return (blur_px > 0.0) & (blur_px < SHARP_PART * _median(blur_px))


def blur_price(variance: Float[Array, ""], blur_px: Float[Array, "V"]) -> Float[Array, ""]:
    """Rises from 0 for a delta to 1 for wide kernels: it closes small kernels, and leaves real blur alone.

    Args:
      variance: mean squared width of the kernels of a view, px^2 at full image scale.
      blur_px: of all views; it is half way at a part of their median.
    """
    half_px = jnp.fmax(SHARP_PX, HALF_PRICE_PART * _median(blur_px))  # of SHARP_PX and NaN, SHARP_PX
    return variance / (variance + half_px**2)


def _median(blur_px: Float[Array, "V"]) -> Float[Array, ""]:
    """Of the views seen so far; NaN: none."""
    return jnp.nanmedian(_known(blur_px))


def _known(blur_px: Float[Array, "V"]) -> Float[Array, "V"]:
    return jnp.where(blur_px > 0.0, blur_px, jnp.nan)
