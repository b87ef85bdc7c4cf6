"""The oracle of `convolve`: one product for each tap. For tests only."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.numerics import EXACT


def convolve_reference(image: Float[Array, "h w Ci"], kernel: Float[Array, "K K Ci Co"]) -> Float[Array, "h w Co"]:
    """Sums image(x + k) kernel(k) over the taps k. Gradients: plain autodiff."""
    (h, w, _), size = image.shape, kernel.shape[0]
    padded = jnp.pad(image, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    total = jnp.zeros((h, w, kernel.shape[-1]))
    for i, j in np.ndindex(size, size):
        total += jnp.dot(padded[i : i + h, j : j + w], kernel[i, j], precision=EXACT)
    return total
