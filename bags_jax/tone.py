"""Tone curves between pixel values and light: that of sRGB (IEC 61966-2-1), and a family of curves with an exponent.

All have a finite slope at 0, and white is 1 before and after.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TOE_SRGB, TOE_LIGHT = 0.04045, 0.0031308  # below these the curve is a straight line, also below 0
OFFSET, GAMMA = 0.055, 2.4  # above: (values + OFFSET)^GAMMA is proportional to light


def srgb_to_linear(values: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Converts sRGB values to linear light; white is 1 in both. Values outside [0, 1], as in renders, are allowed."""
    curve = ((jnp.maximum(values, TOE_SRGB) + OFFSET) / (1.0 + OFFSET)) ** GAMMA
    return jnp.where(values <= TOE_SRGB, values / 12.92, curve)


def linear_to_srgb(light: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Converts linear light to sRGB values; white is 1 in both. Values outside [0, 1] are allowed."""
    curve = (1.0 + OFFSET) * jnp.maximum(light, TOE_LIGHT) ** (1 / GAMMA) - OFFSET
    return jnp.where(light <= TOE_LIGHT, 12.92 * light, curve)


def decode_gamma(values: Float[Array, "*S"], gamma: Float[Array, ""] | float) -> Float[Array, "*S"]:
    """Converts sRGB values to the power `gamma`: linear light at 2.4 (to 6e-5), a shift and a scale of the values at 1.

    A blur of the result is a blur of what a camera (2.4) or a program that resizes pictures (1) adds up. The curve is
    ((v + 0.055) / 1.055)^gamma above the straight part of sRGB, and its tangent below, where `gamma` gets no gradient.
    """
    base, (start, lowest, slope) = (values + OFFSET) / (1.0 + OFFSET), _straight_part(gamma)
    return jnp.where(base <= start, lowest + slope * (base - start), jnp.maximum(base, start) ** gamma)


def encode_gamma(powers: Float[Array, "*S"], gamma: Float[Array, ""] | float) -> Float[Array, "*S"]:
    """The inverse of `decode_gamma`."""
    start, lowest, slope = _straight_part(gamma)
    curve = jnp.maximum(powers, lowest) ** (1.0 / gamma)
    return (1.0 + OFFSET) * jnp.where(powers <= lowest, start + (powers - lowest) / slope, curve) - OFFSET


def _straight_part(gamma: Float[Array, ""] | float):
    """Where the curve of an exponent begins, its value there, and its slope."""
    start, gamma = (TOE_SRGB + OFFSET) / (1.0 + OFFSET), jax.lax.stop_gradient(gamma)
    return start, start**gamma, gamma * start ** (gamma - 1.0)
