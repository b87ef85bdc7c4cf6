"""The mean kernel of a view, from all its kernels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.blur.reference import every_kernel
from bags_jax.structs import BlurField


def mean_kernel(field: BlurField) -> Float[Array, "KK"]:
    """Averages the kernels of a view, weighted by the mask; the unmasked rest goes to the centre tap."""
    mean = jnp.mean(field.mask[None] * every_kernel(field), axis=(1, 2))
    return mean.at[len(mean) // 2].add(1.0 - jnp.mean(field.mask))
