"""What a kernel is: K x K taps, row by row, and the weights that its logits give them.

Logits that are clipped keep gradients alive, but would leave e^(-2 bound) in every tap, and hundreds of taps make a glare of it that
shows in the dark parts of sharp photographs. So 99 % of the least weight a tap can have is taken off every tap, and the rest normalised:
a tap at the lower bound is next to nothing, and opens as readily as ever.
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

FLOOR = 0.99  # part of the weight of a tap at the lower bound that is taken off every tap
LARGEST_BOUND = 30.0  # beyond, nothing is: e^(-2 bound) is nearly too small for a float32


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a pass: side of kernels, side of blocks that share one, bound of the logits, coarse rows at a time."""

    side: int
    stride: int
    bound: float  # 0: none
    rows: int

    @property
    def floor(self) -> float:
        """What is taken off exp(logit - bound) of every tap; 0: nothing, and the largest logit takes the place of the bound."""
        return floor_of(self.bound)


class Filtered(NamedTuple):
    """What the kernels of r x w blocks of pixels make of an image; P: columns of pixels may be kept apart by their place in a block."""

    image: Float[Array, "P D y x"]
    moments: Float[Array, "5 r w"]  # sum_k h_k times dx, dy (px), dx dx, dx dy, dy dy (px^2)
    normalizer: Float[Array, "r w"]  # logarithm of what the weights of the taps add up to


def kernel_side(num_taps: int) -> int:
    """K of K * K taps.

    Raises:
      ValueError: not the square of an odd number.
    """
    side = math.isqrt(num_taps)
    if side * side != num_taps or side % 2 == 0:
        raise ValueError(f"{num_taps} kernel taps came, expected the square of an odd number (9, 25, 81, 169, 289)")
    return side


def tap_offsets(side: int) -> Float[np.ndarray, "KK 2"]:
    """dx and dy of each tap, px: the kernel at x reads the image at x + offset."""
    line = np.arange(side, dtype=np.float32) - side // 2
    return np.stack([np.tile(line, side), np.repeat(line, side)], axis=-1)


def tap_moments(side: int) -> Float[np.ndarray, "5 KK"]:
    """dx, dy (px), dx dx, dx dy, dy dy (px^2) of each tap."""
    dx, dy = tap_offsets(side).T
    return np.stack([dx, dy, dx * dx, dx * dy, dy * dy])


def clip(logits: Float[Array, "*S"], bound: float) -> Float[Array, "*S"]:
    """Logits within +- bound, with numerics.clip_with_return's gradient; 0: as they are."""
    return jnp.asarray(clip_with_return(logits, bound)) if bound else logits


def floor_of(bound: float) -> float:
    """What is taken off exp(logit - bound) of every tap where logits are clipped to +- bound (0: they are not)."""
    return FLOOR * math.exp(-2.0 * bound) if 0.0 < bound <= LARGEST_BOUND else 0.0


def kernels_of(logits: Float[Array, "*S KK"], bound: float) -> Float[Array, "*S KK"]:
    """Kernels whose logits are at hand: softmax of the clipped logits, less its floor."""
    if not floor_of(bound):
        return jax.nn.softmax(clip(logits, bound), axis=-1)
    taps = jnp.exp(clip(logits, bound) - bound) - floor_of(bound)
    return taps / jnp.sum(taps, axis=-1, keepdims=True)


def kernels_at(
    field: BlurField, rows: Int[Array | np.ndarray, "*S"], columns: Int[Array | np.ndarray, "*S"]
) -> Float[Array, "*S KK"]:
    """The kernels of single pixels of the field."""
    logits = jnp.dot(field.features[rows, columns], field.weight)
    return kernels_of(logits + field.bias.reshape((1,) * (logits.ndim - 1) + (-1,)), field.bound)


def resize_taps(side: int, new_side: int, zoom: float) -> Float[np.ndarray, "KK_new KK"]:
    """Linear map that enlarges kernel logits by `zoom` about the centre (bilinear, continued by the last tap).

    It hands a kernel over from one image scale to the next: the same blur covers `zoom` times as many pixels.
    """
    position = np.clip((np.arange(new_side) - new_side // 2) / zoom + side // 2, 0, side - 1)
    below = np.minimum(np.floor(position).astype(int), max(side - 2, 0))
    line = np.zeros((new_side, side), np.float32)
    line[np.arange(new_side), below] += 1.0 - (position - below)
    line[np.arange(new_side), np.minimum(below + 1, side - 1)] += position - below
    return np.kron(line, line)
