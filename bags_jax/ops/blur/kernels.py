"""Blur kernels: K x K taps, row by row, and their weights as a function of the logits.

Clipping the logits keeps gradients alive, but leaves at least e^(-2 bound) in every tap. The sum over hundreds of taps
is a glare that shows in the dark parts of sharp photographs. So 99 % of the smallest possible weight, the floor, is
subtracted from every tap before the weights are normalised: a tap at the lower bound is almost 0, and its gradient
stays.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bags_jax.numerics import clip_with_return
from bags_jax.structs import BlurField

FLOOR = 0.99  # fraction of the weight of a tap at the lower bound that is subtracted from every tap
LARGEST_BOUND = 30.0  # no floor for larger bounds: e^(-2 bound) is nearly too small for a float32


@dataclasses.dataclass(frozen=True)
class KernelBlock:
    """Static description of the kernels that are handled at a time: some rows of the coarse field."""

    side: int  # K of K x K taps
    stride: int  # side of the blocks of pixels that share a kernel, px
    bound: float  # of the logits; 0: none
    rows: int  # of the coarse field

    @property
    def floor(self) -> float:
        """Weight to subtract from exp(logit - bound) of every tap. 0: none, the largest logit replaces the bound."""
        return floor_of(self.bound)


class Filtered(NamedTuple):
    """Image and measures of r x w kernels. P = 1, or P = stride: columns of pixels are grouped by x mod stride."""

    image: Float[Array, "P D y x"]
    moments: Float[Array, "5 r w"]  # sum_k h_k times dx, dy (px), dx dx, dx dy, dy dy (px^2)
    normalizer: Float[Array, "r w"]  # logarithm of the sum of the weights of the taps


def kernel_side(num_taps: int) -> int:
    """Returns K for K * K taps.

    Raises:
      ValueError: not the square of an odd number.
    """
    side = math.isqrt(num_taps)
    if side * side != num_taps or side % 2 == 0:
        raise ValueError(f"{num_taps} kernel taps came, expected the square of an odd number (9, 25, 81, 169, 289)")
    return side


def tap_offsets(side: int) -> Float[np.ndarray, "KK 2"]:
    """Returns dx and dy of each tap, px: the kernel at x reads the image at x + offset."""
    line = np.arange(side, dtype=np.float32) - side // 2
    return np.stack([np.tile(line, side), np.repeat(line, side)], axis=-1)


def tap_moments(side: int) -> Float[np.ndarray, "5 KK"]:
    """Returns dx, dy (px), dx dx, dx dy, dy dy (px^2) of each tap."""
    dx, dy = tap_offsets(side).T
    return np.stack([dx, dy, dx * dx, dx * dy, dy * dy])


def clip(logits: Float[Array, "*S"], bound: float) -> Float[Array, "*S"]:
    """Clips logits to +- bound with the gradient of numerics.clip_with_return. Bound 0: does nothing."""
    return jnp.asarray(clip_with_return(logits, bound)) if bound else logits


def floor_of(bound: float) -> float:
    """Returns the weight to subtract from exp(logit - bound) of every tap; 0 without a bound."""
    return FLOOR * math.exp(-2.0 * bound) if 0.0 < bound <= LARGEST_BOUND else 0.0


def kernels_of(logits: Float[Array, "*S KK"], bound: float) -> Float[Array, "*S KK"]:
    """Computes kernels from logits: softmax of the clipped logits, minus the floor."""
    if not floor_of(bound):
        return jax.nn.softmax(clip(logits, bound), axis=-1)
    taps = jnp.exp(clip(logits, bound) - bound) - floor_of(bound)
    return taps / jnp.sum(taps, axis=-1, keepdims=True)


def kernels_at(
    field: BlurField, rows: Int[Array | np.ndarray, "*S"], columns: Int[Array | np.ndarray, "*S"]
) -> Float[Array, "*S KK"]:
    """Computes the kernels of single pixels of the field."""
    logits = jnp.dot(field.features[rows, columns], field.weight)
    return kernels_of(logits + field.bias.reshape((1,) * (logits.ndim - 1) + (-1,)), field.bound)


def resize_taps(side: int, new_side: int, zoom: float) -> Float[np.ndarray, "KK_new KK"]:
    """Returns the linear map that enlarges kernel logits by `zoom` about the centre (bilinear, last tap repeated).

    Used between two image scales: the same blur covers `zoom` times as many pixels.
    """
    position = np.clip((np.arange(new_side) - new_side // 2) / zoom + side // 2, 0, side - 1)
    below = np.minimum(np.floor(position).astype(int), max(side - 2, 0))
    line = np.zeros((new_side, side), np.float32)
    line[np.arange(new_side), below] += 1.0 - (position - below)
    line[np.arange(new_side), np.minimum(below + 1, side - 1)] += position - below
    return np.kron(line, line)
