"""SSIM in C++ and in XLA against the oracle. tests/test_losses.py has the metric, sizes, batches and threads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.ops.backends import TABLE
from bags_jax.ops.ssim import ssim
from bags_jax.ops.ssim.reference import ssim_reference


@pytest.mark.parametrize("backend", ["cpu", "xla"])
@pytest.mark.parametrize("part_valid", [1.0, 0.7, 0.0])
def test_equals_the_oracle(backend, part_valid):
    """Value and gradient, with holes and without a valid pixel."""
    if problem := TABLE["ssim"][backend].find_problem():
        pytest.skip(problem)
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.random((19, 23, 3)), jnp.float32)
    image = jnp.clip(target + 0.2 * jnp.asarray(rng.normal(size=target.shape), jnp.float32), 0.0, 1.0)
    valid = jnp.asarray(rng.random((19, 23)) < part_valid)
    value, gradient = jax.value_and_grad(ssim)(image, target, valid, backend=backend)
    expected, expected_gradient = jax.value_and_grad(ssim_reference)(image, target, valid)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4 * float(jnp.abs(expected_gradient).max()))
