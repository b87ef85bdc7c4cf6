"""Elementary functions with finite values and gradients everywhere."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TINY = 1e-12
RETURN_SLOPE = 0.1  # of relu_with_return below 0; 1 does not help more (docs/decisions, page 41)
EXACT = jax.lax.Precision.HIGHEST  # float32 matrix products; the default is TF32 (10 bits) on a GPU, bf16 on a TPU


def safe_sqrt(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Returns sqrt(max(x, 0)), with gradient 0 instead of infinity at and below 0."""
    positive = x > TINY * TINY
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_with_return(x: Float[Array, "*S"], bound: float) -> Float[Array, "*S"]:
    """Returns clip(x, -bound, bound), with a gradient that lets an optimiser return from outside the bounds.

    Outside, the gradient of x passes if descent moves x back inside and is 0 if it moves x further out: x stays at the
    bound until the loss prefers a value inside.
    """
    return jnp.clip(x, -bound, bound)


def _clip_fwd(x, bound):
    return jnp.clip(x, -bound, bound), x


def _clip_bwd(bound, x, g):
    leads_out = ((x > bound) & (g < 0.0)) | ((x < -bound) & (g > 0.0))
    return (jnp.where(leads_out, 0.0, g),)


clip_with_return.defvjp(_clip_fwd, _clip_bwd)


@jax.custom_vjp
def relu_with_return(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Returns max(x, 0), with a gradient that lets an optimiser return from below 0.

    There a tenth of the gradient passes if descent raises x, and none if it lowers x. The plain gradient is 0 either way: a
    unit that is 0 for all inputs never comes back.
    """
    return jax.nn.relu(x)


def _relu_fwd(x):
    return jax.nn.relu(x), x


def _relu_bwd(x, g):
    return (jnp.where(x > 0.0, g, RETURN_SLOPE * jnp.minimum(g, 0.0)),)


relu_with_return.defvjp(_relu_fwd, _relu_bwd)


@jax.custom_vjp
def weigh_gradient(tree, weight: Float[Array, ""]):
    """Returns the arrays of a tree unchanged, with gradients times a weight. No gradient flows into the weight."""
    return tree


def _weigh_fwd(tree, weight):
    return tree, weight


def _weigh_bwd(weight, gradients):
    return jax.tree.map(lambda g: g * weight, gradients), jnp.zeros_like(weight)


weigh_gradient.defvjp(_weigh_fwd, _weigh_bwd)


def safe_div(a: Float[Array, "*S"], b: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Returns a / b, and 0 with gradient 0 where b is 0."""
    nonzero = b != 0.0
    return jnp.where(nonzero, a / jnp.where(nonzero, b, 1.0), 0.0)


def safe_normalize(x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
    """Returns x / |x| along the last axis, and 0 with gradient 0 for the zero vector."""
    return safe_div(x, jnp.broadcast_to(safe_sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), x.shape))
