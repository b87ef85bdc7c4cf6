"""The convolution against flax and against the oracle, gradients too."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.ops.convolution import convolve, cpu
from bags_jax.ops.convolution.reference import convolve_reference


@pytest.mark.parametrize("size, block_bytes", [(5, 1 << 20), (3, 4 * 11 * 3 * 7 * 4), (5, 1)])
def test_equals_flax(size, block_bytes, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    image, kernel, g = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((9, 11, 3), (size, size, 3, 4), (9, 11, 4))
    )
    flax = nn.Conv(4, (size, size), use_bias=False)
    expected, pull = jax.vjp(lambda x, k: flax.apply({"params": {"kernel": k}}, x[None])[0], image, kernel)  # type: ignore[reportArgumentType]
    for function in (convolve, functools.partial(convolve, backend="xla"), convolve_reference):
        ours, pull_ours = jax.vjp(function, image, kernel)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        for a, b in zip(pull_ours(g), pull(g), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
