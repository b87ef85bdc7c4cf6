"""The tone curve of sRGB (IEC 61966-2-1) between linear light and pixel values. Its slope is finite at 0."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.platforms import current_platform

TOE_SRGB, TOE_LIGHT = 0.04045, 0.0031308  # below these the curve is a straight line, also below 0


def srgb_to_linear(values: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Converts sRGB values to linear light; white is 1 in both. Values outside [0, 1], as in renders, are allowed."""
    curve = _power((jnp.maximum(values, TOE_SRGB) + 0.055) / 1.055, 2.4)
    return jnp.where(values <= TOE_SRGB, values / 12.92, curve)


def linear_to_srgb(light: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Converts linear light to sRGB values; white is 1 in both. Values outside [0, 1] are allowed."""
    curve = 1.055 * _power(jnp.maximum(light, TOE_LIGHT), 1 / 2.4) - 0.055
    return jnp.where(light <= TOE_LIGHT, 12.92 * light, curve)


def _power(x: Float[Array, "*S"], exponent: float) -> Float[Array, "*S"]:
    """x to a power, x > 0. XLA computes `**` one number at a time on a CPU, which takes five times as long as exp and log."""
    return jnp.exp(exponent * jnp.log(x)) if current_platform() == "cpu" else x**exponent
