"""Elementary functions whose value and gradient are finite everywhere."""

import jax.numpy as jnp
from jaxtyping import Array, Float

TINY = 1e-12


def safe_sqrt(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """sqrt(max(x, 0)), with gradient 0 instead of infinity at and below 0."""
    positive = x > TINY * TINY
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def safe_div(a: Float[Array, "*S"], b: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """a / b, and 0 with gradient 0 where b is 0."""
    nonzero = b != 0.0
    return jnp.where(nonzero, a / jnp.where(nonzero, b, 1.0), 0.0)


def safe_normalize(x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
    """x / |x| along the last axis, and 0 with gradient 0 for the zero vector."""
    return safe_div(x, jnp.broadcast_to(safe_sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), x.shape))
