"""Figures without sharp photographs: the kernel fit recovers known kernels, and each figure measures what it claims."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from bags_jax.ops.blur.reference import apply_kernels
from bags_jax.report import no_truth


@pytest.fixture
def sharp():
    """A texture with two spatial scales, 70 x 90 px."""
    rng = np.random.default_rng(0)
    fine, coarse = rng.uniform(size=(70, 90, 3)), scipy.ndimage.zoom(rng.uniform(size=(14, 18, 3)), (5, 5, 1), order=1)
    return np.clip(0.3 * fine + 0.7 * coarse, 0, 1)


@pytest.fixture
def kernel():
    """An oblique, asymmetric stroke, 7 x 7."""
    taps = np.zeros((7, 7))
    taps[[1, 2, 3, 4, 5], [2, 2, 3, 4, 6]] = [0.3, 0.25, 0.2, 0.15, 0.1]
    return taps


def test_known_kernel_is_recovered(sharp, kernel):
    blurred = np.zeros_like(sharp)
    blurred[3:-3, 3:-3] = no_truth.apply_kernel(sharp, kernel)
    found = no_truth.fit_kernel(sharp, blurred, side=7)
    assert found.min() >= 0 and abs(found.sum() - 1) < 1e-9
    np.testing.assert_allclose(found, kernel, atol=5e-3)  # after 600 steps; convergence is slow near the end


def test_kernel_is_applied_as_the_blur_model_does(sharp, kernel):
    """Tap k reads the picture at x + k, as in bags_jax/ops/blur."""
    field = jnp.broadcast_to(jnp.asarray(kernel.reshape(-1, 1, 1), jnp.float32), (49, *sharp.shape[:2]))
    ours = apply_kernels(jnp.moveaxis(jnp.asarray(sharp, jnp.float32), -1, 0), field, 1)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(ours), 0, -1)[3:-3, 3:-3], no_truth.apply_kernel(sharp, kernel), atol=1e-5
    )


def test_the_fit_uses_every_nth_row_of_large_pictures(sharp, kernel, monkeypatch):
    monkeypatch.setattr(no_truth, "_MAX_EQUATIONS", 4000)
    blurred = np.zeros_like(sharp)
    blurred[3:-3, 3:-3] = no_truth.apply_kernel(sharp, kernel)
    np.testing.assert_allclose(no_truth.fit_kernel(sharp, blurred, side=7), kernel, atol=1e-2)


def test_held_out_score_ignores_uniform_blur_and_shift(sharp):
    shifted = np.roll(scipy.ndimage.uniform_filter(sharp, (3, 3, 1)), (1, -2), axis=(0, 1))
    view = no_truth.score_held_out_view(sharp.astype(np.float32), np.round(255 * shifted).astype(np.uint8), side=9)
    assert view["fitted_PSNR"] > 40 and view["kernel_size"] == 9
    np.testing.assert_allclose(view["kernel_shift_px"], [2, -1], atol=0.05)  # offset at which the kernel reads
    np.testing.assert_allclose(view["kernel_rms_px"], np.sqrt(4 / 3), atol=0.05)
    wrong = no_truth.score_held_out_view(
        sharp[::-1].astype(np.float32), np.round(255 * shifted).astype(np.uint8), side=9
    )
    assert wrong["fitted_PSNR"] < 20  # a different scene scores low


def test_kernel_side_is_reduced_for_a_small_picture():
    grey = np.full((12, 16, 3), 128, np.uint8)
    assert no_truth.score_held_out_view(grey / np.float32(255), grey, side=17)["kernel_size"] == 5


def test_sharpness_gain(sharp):
    blurry = scipy.ndimage.gaussian_filter(sharp, (2, 2, 0))
    assert no_truth.gradient_energy(blurry) < 0.3 * no_truth.gradient_energy(sharp)
    ramp = np.repeat(np.linspace(0, 0.9, 10)[None, :, None], 8, axis=0) * np.ones(3)
    np.testing.assert_allclose(no_truth.gradient_energy(ramp), 0.01)  # (0.1 / px)^2
    photo = np.round(255 * blurry).astype(np.uint8)
    view = no_truth.score_training_view(sharp, blurry, photo)
    assert view["sharpness_gain"] > 3 and view["reblur_PSNR"] > 45
    assert no_truth.score_training_view(sharp, sharp, np.zeros_like(photo))["sharpness_gain"] is None


def test_summary_is_json_and_its_table_explains_each_value():
    training = {"a": {"reblur_PSNR": 30.0, "sharpness_gain": 1.0}, "b": {"reblur_PSNR": 32.0, "sharpness_gain": None}}
    held_out = {"c": {"fitted_PSNR": 28.0, "kernel_size": 9, "kernel_rms_px": 1.0, "kernel_shift_px": [0.0, 0.0]}}
    found = no_truth.summarize(training, held_out, has_blur_model=True)
    assert json.loads(json.dumps(found)) == found
    assert (found["reblur_PSNR"], found["sharpness_gain"], found["held_out_fitted_PSNR"]) == (31.0, 1.0, 28.0)
    text = str(no_truth.format_rows(found))
    assert "31.00 dB" in text and "9 x 9 kernel" in text and "says nothing of sharpness" in text
    empty = no_truth.summarize(training, {}, has_blur_model=False)
    assert empty["held_out_fitted_PSNR"] is None and "no blur model" in str(no_truth.format_rows(empty))
