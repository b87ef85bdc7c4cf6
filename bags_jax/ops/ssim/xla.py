"""Structural similarity in plain XLA: a separable window as sums of shifted planes."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bags_jax.ops.ssim.window import C1, C2, TAPS, WINDOW


@jax.custom_vjp
def _gaussian_window(planes: Float[Array, "D H W"]) -> Float[Array, "D H W"]:
    """Filters with the window, zeros beyond the border. Its matrix is symmetric: the filter is its own transpose.

    The barriers keep XLA from fusing the two passes, which would compute the first one 11 times over.
    """
    radius = WINDOW // 2
    _, height, width = planes.shape
    padded = jax.lax.optimization_barrier(jnp.pad(planes, ((0, 0), (radius, radius), (0, 0))))
    planes = functools.reduce(jnp.add, [TAPS[k] * padded[:, k : k + height] for k in range(WINDOW)])
    padded = jax.lax.optimization_barrier(jnp.pad(planes, ((0, 0), (0, 0), (radius, radius))))
    filtered = functools.reduce(jnp.add, [TAPS[k] * padded[:, :, k : k + width] for k in range(WINDOW)])
    return jax.lax.optimization_barrier(filtered)


_gaussian_window.defvjp(lambda planes: (_gaussian_window(planes), None), lambda _, g: (_gaussian_window(g),))


def sum_similarities(
    image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]
) -> Float[Array, ""]:
    """Sums the similarities of all valid pixels and channels."""
    x, y = (jnp.where(valid[None], jnp.moveaxis(image, -1, 0), 0.0) for image in (image, target))
    channels = x.shape[0]
    means = _gaussian_window(jnp.concatenate([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = (means[k * channels : (k + 1) * channels] for k in range(5))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2.0 * cov + C2) / (var_x + var_y + C2)
    return jnp.sum(jnp.where(valid[None], luminance * structure, 0.0))
