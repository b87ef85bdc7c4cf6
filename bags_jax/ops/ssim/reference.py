"""The oracle of `ssim`: every window as one dense, weighted sum. For tests only."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.numerics import EXACT
from bags_jax.ops.ssim.window import C1, C2, TAPS


def ssim_reference(
    image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]
) -> Float[Array, ""]:
    """Computes the mean structural similarity over valid pixels; `ssim` has the details. Gradients: plain autodiff."""
    x, y = (jnp.where(valid[..., None], image, 0.0) for image in (image, target))
    mean_x, mean_y = _mean(x), _mean(y)
    var_x, var_y, cov = _mean(x * x) - mean_x**2, _mean(y * y) - mean_y**2, _mean(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + C1) * (2 * cov + C2)) / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    return jnp.sum(jnp.where(valid[..., None], similarity, 0.0)) / (jnp.maximum(jnp.sum(valid), 1) * image.shape[-1])


def _mean(image: Float[Array, "H W D"]) -> Float[Array, "H W D"]:
    """Weighted mean around each pixel, zeros beyond the border."""
    planes = jnp.moveaxis(image, -1, 0)[:, None]
    means = jax.lax.conv(planes, jnp.asarray(np.outer(TAPS, TAPS))[None, None], (1, 1), "SAME", precision=EXACT)
    return jnp.moveaxis(means[:, 0], 0, -1)
