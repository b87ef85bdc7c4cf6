"""Exposure of each training view: three learned gains of light, with the mean brightness of the scene held.

Cameras choose exposure and white balance anew for each photograph. A photograph that is brighter than the others cannot be
explained by the scene; a blur model then widens its kernels. Each training view therefore has the logarithms of three gains
(red, green, blue), by which the light of its predicted photograph is multiplied. Brightening all views and darkening the scene
changes no photograph, so the gains are kept at a mean of 0, in which sharper views have larger weights.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.scene.confidence import pose_trust

OFFSET, GAMMA = 0.055, 2.4  # of sRGB above its straight part: (values + OFFSET)^GAMMA is proportional to light


def expose(image: Float[Array, "H W 3"], log_gains: Float[Array, "3"]) -> Float[Array, "H W 3"]:
    """Multiplies the light of an image by the gains of a view; image and result are sRGB. Exact above the straight part."""
    return (image + OFFSET) * jnp.exp(log_gains / GAMMA)[None, None] - OFFSET


def hold_brightness(log_gains: Float[Array, "V 3"], blur_px: Float[Array, "V"]) -> Float[Array, "V 3"]:
    """Subtracts the mean over the views, which the scene itself has to explain; sharper views have larger weights.

    Blur that the model has in another tone curve than the photograph darkens blurry views: they must not set the brightness.

    Args:
      blur_px: RMS width of the blur of each view, px; 0: no step yet.
    """
    weights = pose_trust(blur_px)[:, None]
    return log_gains - jnp.sum(weights * log_gains, axis=0, keepdims=True) / jnp.sum(weights)
