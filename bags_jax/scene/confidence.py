"""How much each training view counts, from its blur: sharp views fix the scene, blurry ones follow.

`blur_px` is one number for each view: the RMS width of its kernels at its last step, px at full image scale. 0: no step yet.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SHARP_PX = 0.25  # floor of the blur: below it, differences in width are noise
ALIKE_RATIO = 1.5  # views count as equally blurred if their variances differ by less than this factor (widths: 1.22)
ALIKE_PX = 0.5  # blur differences below this do not count: a pixel itself averages over 0.41 px
COMMON_PX = 1.5  # kernels of a sharp capture may be this wide: they compensate for splatting errors
NEARLY_ALL = 0.9  # share of the views
SHARP_SHARE = (
    0.6  # a view is sharp below this share of the median blur; kernels of truly sharp views still reach about 0.5
)
HALF_PENALTY_SHARE = (
    0.3  # share of the median blur at which the penalty is one half, so that image size has no influence
)


def view_confidence(blur_px: Float[Array, "V"], half_at: float) -> Float[Array, "V"]:
    """Weight of each training view in the gradients of the scene: the sharper the view, the larger; 1 on average.

    A blurry photograph shows the detail of the scene through the inverse of its blur, and through all errors of the blur model.
    The blur model itself and density control weight all views equally.

    Args:
      blur_px: views without a step yet get the median.
      half_at: a view blurred by this many times the median counts half as much as a sharp one; 0: all views count the same.
    """
    if not half_at:
        return jnp.ones_like(blur_px)
    # Relative to the median blur, so independent of image size. SHARP_PX keeps noise in the kernels of sharp photographs from
    # changing the weights.
    known = blur_px > 0.0
    median = jnp.nan_to_num(_median(blur_px))
    half = (half_at * median) ** 2 + SHARP_PX**2
    weights = half / (half + jnp.where(known, blur_px, median) ** 2)
    return weights / jnp.mean(weights)


def pose_trust(blur_px: Float[Array, "*V"]) -> Float[Array, "*V"]:
    """Weight of the capture's pose of each view, 1 / px^2: the expected pose error is as large as the blur.

    Args:
      blur_px: views without a step yet count as blurred by 1 px.
    """
    return jnp.where(blur_px > 0.0, 1.0 / (blur_px**2 + SHARP_PX**2), 1.0)


def looks_sharp(blur_px: Float[Array, "V"]) -> Bool[Array, ""]:
    """True if nearly all views have equal, small blur: then kernels compensate for splatting errors, not for blur.

    Shake and defocus differ between photographs by a factor of 2 and more. Splatting errors are equal in all photographs. Views
    without a step yet do not count; without any view the answer is False.
    """
    least, most = jnp.nanquantile(_known(blur_px), jnp.array([1.0 - NEARLY_ALL, NEARLY_ALL]))
    return (most < COMMON_PX) & (most**2 < ALIKE_RATIO * least**2 + ALIKE_PX**2)  # False for NaN


def sharp_views(blur_px: Float[Array, "V"]) -> Bool[Array, "V"]:
    """True for views much sharper than most: the scene should be as sharp as they are, and no sharper.

    The scene may sharpen while all kernels widen, by half a pixel of a small image and more of a large one, and no photograph
    shows it. The sharpest views set the limit.

    Args:
      blur_px: from a later phase of training; a view without a step yet is not sharp.
    """
    return (blur_px > 0.0) & (blur_px < SHARP_SHARE * _median(blur_px))


def blur_penalty(variance: Float[Array, ""], blur_px: Float[Array, "V"]) -> Float[Array, ""]:
    """Penalty of the blur of a view: from 0 for a delta to 1 for wide kernels. It closes small kernels and spares real blur.

    Args:
      variance: mean squared kernel width of the view, px^2 at full image scale.
      blur_px: of all views; the penalty is one half at HALF_PENALTY_SHARE of their median.
    """
    half_px = jnp.fmax(SHARP_PX, HALF_PENALTY_SHARE * _median(blur_px))  # fmax of SHARP_PX and NaN is SHARP_PX
    return variance / (variance + half_px**2)


def _median(blur_px: Float[Array, "V"]) -> Float[Array, ""]:
    """Median of the views with a step; NaN without any."""
    return jnp.nanmedian(_known(blur_px))


def _known(blur_px: Float[Array, "V"]) -> Float[Array, "V"]:
    return jnp.where(blur_px > 0.0, blur_px, jnp.nan)
