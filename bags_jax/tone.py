"""The tone curve between light and the values in a photograph: sRGB's (IEC 61966-2-1), whose slope is finite at 0."""

import jax.numpy as jnp
from jaxtyping import Array, Float

TOE_SRGB, TOE_LIGHT = 0.04045, 0.0031308  # below: a straight line, which goes on under 0


def srgb_to_linear(values: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Light of sRGB values, both with white at 1; renders may leave [0, 1] on either side."""
    curve = ((jnp.maximum(values, TOE_SRGB) + 0.055) / 1.055) ** 2.4
    return jnp.where(values <= TOE_SRGB, values / 12.92, curve)


def linear_to_srgb(light: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """sRGB values of light, both with white at 1."""
    curve = 1.055 * jnp.maximum(light, TOE_LIGHT) ** (1 / 2.4) - 0.055
    return jnp.where(light <= TOE_LIGHT, 12.92 * light, curve)
