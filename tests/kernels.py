"""The kernel of a whole view, the long way."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.blur.reference import every_kernel
from bags_jax.structs import BlurField


def mean_kernel(field: BlurField) -> Float[Array, "KK"]:
    """Mean of a view's kernels weighted by the mask, with the unmasked rest at the centre."""
    mean = jnp.mean(field.mask[None] * every_kernel(field), axis=(1, 2))
    return mean.at[len(mean) // 2].add(1.0 - jnp.mean(field.mask))
