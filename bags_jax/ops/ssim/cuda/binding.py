"""Structural similarity by ssim.cu: one launch for the value, one for the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.ops.ssim.window import C1, C2, TAPS
from bags_jax.ops.toolchain.cuda_launch import Kernel, launch

PATCH = 16  # side of the patch of a block, px; ssim.cu has the same number
CONSTANTS = np.array([*TAPS, C1, C2], np.float32)


def _launch(name: str, shapes, image, *operands):
    kernel, (height, width, _) = Kernel("ssim", name, PATCH * PATCH), image.shape
    outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    grid = (-(-width // PATCH), -(-height // PATCH))
    return launch(
        kernel, outputs, jnp.array(image.shape, jnp.int32), jnp.asarray(CONSTANTS), image, *operands, grid=grid
    )


def _compare(image, target, valid):
    """Sum of the similarities; slopes of each in the filtered image, its square and its product with the target."""
    height, width, channels = image.shape
    blocks = -(-height // PATCH), -(-width // PATCH)
    sums, slopes = _launch("compare", [blocks, (3, channels, height, width)], image, target, valid)
    return jnp.sum(sums), slopes


@jax.custom_vjp
def _sum_similarities(image, target, valid: Float[Array, "H W"]) -> Float[Array, ""]:
    return _compare(image, target, valid)[0]


def _forward(image, target, valid):
    total, slopes = _compare(image, target, valid)
    return total, (image, target, valid, slopes)


def _backward(saved, g):
    image, target, valid, slopes = saved
    (d_image,) = _launch("gradient", [image.shape], image, target, valid, slopes)
    return g * d_image, None, None


_sum_similarities.defvjp(_forward, _backward)


def sum_similarities(
    image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]
) -> Float[Array, ""]:
    """Sums the similarities of all valid pixels and channels."""
    return _sum_similarities(image, target, valid.astype(jnp.float32))
