"""Packed trees: the small arrays of a pytree joined to a few long ones, and the way back.

A loop on a GPU launches at least one kernel for each array that it carries, however small. A step of BAGS carries a hundred.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 1 << 14  # numbers in an array: larger ones stay alone
# Arrays in a long one. With more than about 90, XLA computes each by itself and then joins them (docs/decisions, page 39).
MOST_JOINED = 64


def pack(tree: Any) -> list[jax.Array]:
    """The arrays of a tree, with the small ones joined. `unpacker` makes the inverse."""
    leaves = jax.tree.leaves(tree)
    return [
        leaves[group[0]] if len(group) == 1 else jnp.concatenate([leaves[i].ravel() for i in group])
        for group in _groups(leaves)
    ]


def unpacker(tree: Any) -> Callable[[list[jax.Array]], Any]:
    """The inverse of `pack`, for trees with the structure, shapes and types of this one."""
    leaves, structure = jax.tree.flatten(tree)
    groups, shapes = _groups(leaves), [x.shape for x in leaves]

    def unpack(packed: list[jax.Array]) -> Any:
        found = {}
        for group, joined in zip(groups, packed, strict=True):
            ends = np.cumsum([int(np.prod(shapes[i])) for i in group])
            parts = jnp.split(joined, ends[:-1]) if len(group) > 1 else [joined]
            found |= {i: part.reshape(shapes[i]) for i, part in zip(group, parts, strict=True)}
        return structure.unflatten(found[i] for i in range(len(shapes)))

    return unpack


def _groups(leaves: list[jax.Array]) -> list[list[int]]:
    """Indices of the leaves that are joined; a large one is alone."""
    by_type: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        by_type.setdefault(x.dtype if x.size <= SMALL else i, []).append(i)
    return [same[i : i + MOST_JOINED] for same in by_type.values() for i in range(0, len(same), MOST_JOINED)]
