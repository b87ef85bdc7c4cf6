"""Converts between images and coarse fields with one value for each block of stride x stride pixels."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float


def repeat_blocks(coarse: Float[Array, "*S h w"], stride: int, height: int, width: int) -> Float[Array, "*S H W"]:
    """Repeats each value of a coarse field for all pixels of its block."""
    if stride == 1:
        return coarse
    *lead, h, w = coarse.shape
    blocks = jnp.broadcast_to(coarse[..., :, None, :, None], (*lead, h, stride, w, stride))
    return blocks.reshape(*lead, h * stride, w * stride)[..., :height, :width]


def mean_blocks(image: Float[Array, "H W *D"], stride: int) -> Float[Array, "h w *D"]:
    """Averages blocks of stride x stride px. Blocks that cross the border see its last pixel repeated."""
    if stride == 1:
        return image
    height, width = image.shape[:2]
    padding = [(0, -height % stride), (0, -width % stride)] + [(0, 0)] * (image.ndim - 2)
    padded = jnp.pad(image, padding, mode="edge")
    h, w = padded.shape[0] // stride, padded.shape[1] // stride
    return padded.reshape(h, stride, w, stride, *image.shape[2:]).mean(axis=(1, 3))


def sum_blocks(plane: Float[Array, "H W"], stride: int) -> Float[Array, "h w"]:
    """Sums blocks of stride x stride px: the transpose of repeat_blocks."""
    height, width = plane.shape
    padded = jnp.pad(plane, ((0, -height % stride), (0, -width % stride)))
    parts = [padded[i::stride, j::stride] for i in range(stride) for j in range(stride)]
    return functools.reduce(jnp.add, parts)
