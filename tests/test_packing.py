"""The small arrays of a tree joined to a few, and taken apart again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.packing import MOST_JOINED, SMALL, pack, unpacker

TREES = {
    "mixed": {
        "a": jnp.arange(6.0).reshape(2, 3),
        "step": jnp.int32(7),
        "seed": jnp.uint32(5),
        "large": jnp.ones((SMALL + 1,)),
        "empty": jnp.zeros((0, 3)),
        "alive": jnp.array([True, False]),
        "none": None,
        "last": jnp.float32(2.0),
    },
    "many": [jnp.full((i % 3 + 1, 2), float(i)) for i in range(2 * MOST_JOINED + 3)],
    "one": (jnp.float32(3.0),),
    "nothing": {},
}


@pytest.mark.parametrize("name", TREES)
def test_unpacked_is_what_was_packed(name):
    tree = TREES[name]
    found = jax.jit(lambda tree: unpacker(tree)(pack(tree)))(tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_few_arrays_are_left():
    assert len(pack(TREES["mixed"])) == 5  # float32, int32, uint32, bool, the large one
    assert len(pack(TREES["many"])) == 3
