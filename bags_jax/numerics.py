"""Elementary functions whose value and gradient are finite everywhere."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TINY = 1e-12
EXACT = jax.lax.Precision.HIGHEST  # of matrix products: a GPU's default is TF32, with 10 bits, and a TPU's bf16


def safe_sqrt(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """sqrt(max(x, 0)), with gradient 0 instead of infinity at and below 0."""
    positive = x > TINY * TINY
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_with_return(x: Float[Array, "*S"], bound: float) -> Float[Array, "*S"]:
    """clip(x, -bound, bound), with the gradient of x where descent leads back inside, 0 where it leads further out.

    What an optimiser pushes against a bound neither runs away nor gets stuck: it stays there until it is wanted back.
    """
    return jnp.clip(x, -bound, bound)


def _clip_fwd(x, bound):
    return jnp.clip(x, -bound, bound), x


def _clip_bwd(bound, x, g):
    leads_out = ((x > bound) & (g < 0.0)) | ((x < -bound) & (g > 0.0))
    return (jnp.where(leads_out, 0.0, g),)


clip_with_return.defvjp(_clip_fwd, _clip_bwd)


def safe_div(a: Float[Array, "*S"], b: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """a / b, and 0 with gradient 0 where b is 0."""
    nonzero = b != 0.0
    return jnp.where(nonzero, a / jnp.where(nonzero, b, 1.0), 0.0)


def safe_normalize(x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
    """x / |x| along the last axis, and 0 with gradient 0 for the zero vector."""
    return safe_div(x, jnp.broadcast_to(safe_sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), x.shape))
