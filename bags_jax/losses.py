"""Terms of the training loss: one function each, all of them means, so that they do not depend on the image size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def _masked_mean(values: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    total = jnp.sum(jnp.where(valid[..., None], values, 0.0))
    return total / (jnp.maximum(jnp.sum(valid), 1) * values.shape[-1])


def l1(image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean absolute difference over valid pixels."""
    return _masked_mean(jnp.abs(image - target), valid)


def mse(image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean squared difference over valid pixels."""
    return _masked_mean((image - target) ** 2, valid)


def psnr_from_mse(error: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Peak signal-to-noise ratio of images in [0, 1], dB."""
    return -10.0 / np.log(10.0) * jnp.log(jnp.maximum(error, 1e-12))


@jax.custom_vjp
def _gaussian_window(planes: Float[Array, "D H W"]) -> Float[Array, "D H W"]:
    """Separable 11 x 11 Gaussian filter, zeros beyond the border. Its matrix is symmetric: it is its own transpose.

    Sums of shifted planes. The barriers keep XLA from fusing the two passes, which would compute the first one 11 times over.
    """
    radius = SSIM_WINDOW // 2
    taps = np.exp(-0.5 * ((np.arange(SSIM_WINDOW) - radius) / SSIM_SIGMA) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    _, height, width = planes.shape
    padded = jax.lax.optimization_barrier(jnp.pad(planes, ((0, 0), (radius, radius), (0, 0))))
    planes = functools.reduce(jnp.add, [taps[k] * padded[:, k : k + height] for k in range(SSIM_WINDOW)])
    padded = jax.lax.optimization_barrier(jnp.pad(planes, ((0, 0), (0, 0), (radius, radius))))
    filtered = functools.reduce(jnp.add, [taps[k] * padded[:, :, k : k + width] for k in range(SSIM_WINDOW)])
    return jax.lax.optimization_barrier(filtered)


_gaussian_window.defvjp(lambda planes: (_gaussian_window(planes), None), lambda _, g: (_gaussian_window(g),))


def ssim(image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean structural similarity, 11 x 11 Gaussian window of sigma 1.5, zeros beyond the border (Wang et al. 2004).

    Invalid pixels count as beyond the border: a small image padded to a larger one has the SSIM that it had alone.
    """
    planes = [jnp.where(valid[None], jnp.moveaxis(x, -1, 0), 0.0) for x in (image, target)]
    x, y = planes
    channels = x.shape[0]
    moments = _gaussian_window(jnp.concatenate([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = (moments[k * channels : (k + 1) * channels] for k in range(5))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2.0 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return _masked_mean(jnp.moveaxis(luminance * structure, 0, -1), valid)


def total_variation(image: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean absolute difference of neighbouring pixels."""
    down = _masked_mean(jnp.abs(image[1:] - image[:-1]), valid[1:])
    across = _masked_mean(jnp.abs(image[:, 1:] - image[:, :-1]), valid[:, 1:])
    return down + across
