"""Losses against the metrics and a naive convolution; padding changes none of them. With C++ and without."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import metrics
from bags_jax.losses import l1, mse, psnr_from_mse, ssim, total_variation

H, W = 17, 21


@pytest.fixture(autouse=True, params=["1", "0"], ids=["native", "xla"])
def native(monkeypatch, request):
    monkeypatch.setenv("BAGS_JAX_NATIVE", request.param)


def pair(seed: int = 0):
    rng = np.random.default_rng(seed)
    target = rng.random((H, W, 3))
    image = np.clip(target + rng.normal(size=target.shape) * 0.2, 0, 1)
    return jnp.asarray(image, jnp.float32), jnp.asarray(target, jnp.float32), jnp.ones((H, W), bool)


def ssim_naive(image, target):
    """By one dense convolution, not separable, no gradient rule of its own."""
    taps = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    taps = jnp.asarray(np.outer(taps, taps) / taps.sum() ** 2, jnp.float32)

    def window(x):
        planes = jnp.moveaxis(x, -1, 0)[:, None]
        return jnp.moveaxis(jax.lax.conv(planes, taps[None, None], (1, 1), "SAME")[:, 0], 0, -1)

    a, b = window(image), window(target)
    var_a, var_b, cov = window(image**2) - a**2, window(target**2) - b**2, window(image * target) - a * b
    return jnp.mean((2 * a * b + 1e-4) * (2 * cov + 9e-4) / ((a**2 + b**2 + 1e-4) * (var_a + var_b + 9e-4)))


def test_ssim_is_the_metric():
    image, target, valid = pair()
    expected = metrics.gaussian_splatting(np.asarray(image), np.asarray(target))
    np.testing.assert_allclose(ssim(image, target, valid), expected.ssim, atol=1e-5)
    np.testing.assert_allclose(psnr_from_mse(mse(image, target, valid)), expected.psnr, rtol=1e-5)
    np.testing.assert_allclose(ssim(target, target, valid), 1.0, atol=1e-5)


def test_gradient_of_ssim_is_autodiff_of_the_formula():
    image, target, valid = pair()
    ours = jax.grad(lambda i: ssim(i, target, valid))(image)
    naive = jax.grad(lambda i: ssim_naive(i, target))(image)
    np.testing.assert_allclose(ours, naive, atol=1e-3 * float(jnp.abs(naive).max()))
    direction = jnp.asarray(np.random.default_rng(3).normal(size=image.shape), jnp.float32)
    high, low = (ssim_naive(image + s * 0.01 * direction, target) for s in (1, -1))
    np.testing.assert_allclose(jnp.sum(ours * direction), (high - low) / 0.02, rtol=0.02)


@pytest.mark.parametrize(
    "loss",
    [l1, mse, ssim, lambda image, target, valid: total_variation(image, valid)],
    ids=["l1", "mse", "ssim", "total_variation"],
)
def test_padding_changes_nothing(loss):
    image, target, valid = pair()
    margin = ((0, 6), (0, 4))
    rubbish = jnp.pad(image, (*margin, (0, 0)), constant_values=0.77)
    padded = rubbish, jnp.pad(target, (*margin, (0, 0)), constant_values=0.1), jnp.pad(valid, margin)
    np.testing.assert_allclose(loss(*padded), loss(image, target, valid), rtol=1e-5)
    gradient = jax.grad(loss)(*padded)
    np.testing.assert_allclose(gradient[:H, :W], jax.grad(loss)(image, target, valid), atol=1e-6)
    assert not gradient[H:].any() and not gradient[:, W:].any()


def test_plain_means():
    image, target, valid = pair()
    np.testing.assert_allclose(l1(image, target, valid), np.mean(np.abs(image - target)), rtol=1e-5)
    np.testing.assert_allclose(mse(image, target, valid), np.mean((image - target) ** 2), rtol=1e-5)
    steps = np.mean(np.abs(np.diff(image, axis=0))) + np.mean(np.abs(np.diff(image, axis=1)))
    np.testing.assert_allclose(total_variation(image, valid), steps, rtol=1e-5)
    np.testing.assert_allclose(psnr_from_mse(jnp.float32(0.01)), 20.0, rtol=1e-5)
    assert np.isfinite(psnr_from_mse(jnp.float32(0.0)))


def test_nothing_valid_is_zero_not_nan():
    image, target, valid = pair()
    for loss in (l1, mse, ssim):
        value, gradient = jax.value_and_grad(loss)(image, target, ~valid)
        assert value == 0 and not gradient.any()


# Rows of fewer numbers than the C++ takes at a time, and of more; blocks of rows that are whole, and not.
@pytest.mark.parametrize("height, width, channels", [(1, 1, 1), (2, 3, 3), (16, 8, 1), (33, 25, 4), (40, 64, 3)])
def test_ssim_of_every_size_equals_the_naive_one(height, width, channels):
    rng = np.random.default_rng(1)
    image, target = (jnp.asarray(rng.random((height, width, channels)), jnp.float32) for _ in range(2))
    valid = jnp.ones((height, width), bool)
    (value, gradient), (expected, naive) = (
        jax.value_and_grad(f)(image, target) for f in (lambda i, t: ssim(i, t, valid), ssim_naive)
    )
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, naive, atol=1e-4 * float(jnp.abs(naive).max()))


def test_ssim_of_a_batch_is_that_of_each():
    image, target, valid = pair()
    images, holes = jnp.stack([image, image**2]), jnp.stack([valid, image[..., 0] > 0.3])
    values, gradients = jax.vmap(jax.value_and_grad(ssim), in_axes=(0, None, 0))(images, target, holes)
    for k in range(2):
        value, gradient = jax.value_and_grad(ssim)(images[k], target, holes[k])
        np.testing.assert_allclose(values[k], value, rtol=1e-6)
        np.testing.assert_allclose(gradients[k], gradient, atol=1e-7)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: there is one thread whatever is asked for")
def test_number_of_threads_changes_no_bit_of_ssim(monkeypatch):
    rng = np.random.default_rng(2)
    image, target = (jnp.asarray(rng.random((90, 70, 3)), jnp.float32) for _ in range(2))
    results = []
    for threads in ("1", "2", "2"):
        monkeypatch.setenv("BAGS_JAX_NUM_THREADS", threads)
        results.append(jax.value_and_grad(ssim)(image, target, jnp.ones((90, 70), bool)))
    for value, gradient in results[1:]:
        assert value == results[0][0]
        np.testing.assert_array_equal(gradient, results[0][1])
