"""Splits any number of channels into groups of sizes that code is compiled for; zeros fill the last group."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.limits import CHANNELS


def channel_groups(num: int) -> list[tuple[int, int, int]]:
    """Returns for each group of channels: first channel, end, number of channels with padding."""
    groups = []
    for first in range(0, max(num, 1), CHANNELS[-1]):
        end = min(first + CHANNELS[-1], num)
        groups.append((first, end, next(c for c in CHANNELS if c >= end - first)))
    return groups


def pad_channels(x: Float[Array, "*S D"], channels: int) -> Float[Array, "*S E"]:
    """Appends channels of zeros."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels - x.shape[-1])])
