"""Exposure of each training view: three learned gains of light, with the mean brightness of the scene held.

Cameras choose exposure and white balance anew for each photograph. A photograph that is brighter than the others cannot be
explained by the scene; a blur model then widens its kernels. Each training view therefore has the logarithms of three gains
(red, green, blue), by which the light of its predicted photograph is multiplied. Brightening all views and darkening the scene
changes no photograph, so the gains are kept at mean 0 over the views.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

OFFSET, GAMMA = 0.055, 2.4  # of sRGB above its straight part: (values + OFFSET)^GAMMA is proportional to light


def expose(image: Float[Array, "H W 3"], log_gains: Float[Array, "3"]) -> Float[Array, "H W 3"]:
    """Multiplies the light of an image by the gains of a view; image and result are sRGB. Exact above the straight part."""
    return (image + OFFSET) * jnp.exp(log_gains / GAMMA)[None, None] - OFFSET


def hold_brightness(log_gains: Float[Array, "V 3"]) -> Float[Array, "V 3"]:
    """Subtracts the mean over the views, which the scene itself has to explain."""
    return log_gains - jnp.mean(log_gains, axis=0, keepdims=True)
