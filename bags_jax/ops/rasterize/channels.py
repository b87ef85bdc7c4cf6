"""Any number of channels by code that is compiled for a few: so many at a time, the last ones padded with zeros."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.limits import CHANNELS


def channel_groups(num: int) -> list[tuple[int, int, int]]:
    """Cuts `num` channels into groups that there is code for: first channel, end, channels with padding."""
    groups = []
    for first in range(0, max(num, 1), CHANNELS[-1]):
        end = min(first + CHANNELS[-1], num)
        groups.append((first, end, next(c for c in CHANNELS if c >= end - first)))
    return groups


def pad_channels(x: Float[Array, "*S D"], channels: int) -> Float[Array, "*S E"]:
    """Zeros behind the last channel."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels - x.shape[-1])])
