"""SSIM in C++, in CUDA and in XLA against the oracle. tests/test_losses.py has the metric, sizes, batches and threads.

CUDA kernels run on a GPU, or on the PTX emulator.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.ops.backends import TABLE
from bags_jax.ops.ssim import ssim
from bags_jax.ops.ssim.reference import ssim_reference
from tools import ptx_emulator


@contextlib.contextmanager
def only(backend: str):
    """A context in which a backend can run."""
    find_problem = ptx_emulator.find_problem if backend == "cuda" else TABLE["ssim"][backend].find_problem
    if problem := find_problem():
        pytest.skip(problem)
    with ptx_emulator.emulated() if backend == "cuda" else contextlib.nullcontext():
        yield


def make_images(height, width, part_valid, channels=3):
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.random((height, width, channels)), jnp.float32)
    image = jnp.clip(target + 0.2 * jnp.asarray(rng.normal(size=target.shape), jnp.float32), 0.0, 1.0)
    return image, target, jnp.asarray(rng.random((height, width)) < part_valid)


@pytest.mark.parametrize("backend", ["cpu", "cuda", "xla"])
@pytest.mark.parametrize("part_valid", [1.0, 0.7, 0.0])
def test_equals_the_oracle(backend, part_valid):
    """Value and gradient, with holes and without a valid pixel."""
    image, target, valid = make_images(19, 23, part_valid)
    with only(backend):
        value, gradient = jax.value_and_grad(ssim)(image, target, valid, backend=backend)
    expected, expected_gradient = jax.value_and_grad(ssim_reference)(image, target, valid)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4 * float(jnp.abs(expected_gradient).max()))


@pytest.mark.parametrize("height, width, channels", [(1, 1, 1), (16, 32, 2), (5, 40, 4)])
def test_cuda_has_any_size(height, width, channels):
    """A single pixel, whole patches, and an image lower than the window."""
    image, target, valid = make_images(height, width, 1.0, channels)
    with only("cuda"):
        value, gradient = jax.value_and_grad(ssim)(image, target, valid, backend="cuda")
    expected, expected_gradient = jax.value_and_grad(ssim_reference)(image, target, valid)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4 * float(jnp.abs(expected_gradient).max()) + 1e-7)


def test_flat_images_of_equal_value_are_alike_in_cuda():
    """Where the variances vanish, rounding may not blow up value or gradient."""
    flat = jnp.full((20, 20, 3), 0.9)
    with only("cuda"):
        value, gradient = jax.value_and_grad(ssim)(flat, flat, jnp.ones((20, 20), bool), backend="cuda")
    assert abs(float(value) - 1.0) < 1e-5 and float(jnp.abs(gradient).max()) < 1e-4
