"""`ssim`: structural similarity of two images, as a loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bags_jax.ops.backends import choose
from bags_jax.ops.ssim import xla
from bags_jax.ops.ssim.cpu import binding as cpu_binding
from bags_jax.ops.ssim.cuda import binding as cuda_binding

_IMPLEMENTATIONS = {"cpu": cpu_binding, "cuda": cuda_binding, "xla": xla}


def ssim(
    image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"], *, backend: str = "auto"
) -> Float[Array, ""]:
    """Computes the mean structural similarity over valid pixels (Wang et al. 2004), at most 1.

    11 x 11 Gaussian window of sigma 1.5 px, zeros beyond the border. Invalid pixels count as beyond the border: a small
    image padded to a larger one keeps its SSIM.

    Args:
      image, target: values from 0 to 1, any number of channels.
      valid: pixels to compare.
      backend: "cpu" is C++, compiled at first use; "cuda" is for NVIDIA GPUs; "xla" runs everywhere; "auto" takes the best of
        this machine. "tpu" runs on "xla" there.
    Returns:
      0 where no pixel is valid.
    Raises:
      ValueError: a backend that is unknown or that this machine cannot run.
    Differentiable in the image alone, once, in reverse mode.
    """
    total = _IMPLEMENTATIONS[choose("ssim", backend)].sum_similarities(image, jax.lax.stop_gradient(target), valid)
    return total / (jnp.maximum(jnp.sum(valid), 1) * image.shape[-1])
