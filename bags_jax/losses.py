"""Terms of the training loss: one function each, all of them means, so that they do not depend on the image size."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.ops.ssim.xla import ssim

__all__ = ["l1", "mse", "psnr_from_mse", "ssim", "total_variation"]


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


def total_variation(image: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean absolute difference of neighbouring pixels."""
    down = _masked_mean(jnp.abs(image[1:] - image[:-1]), valid[1:])
    across = _masked_mean(jnp.abs(image[:, 1:] - image[:, :-1]), valid[:, 1:])
    return down + across
