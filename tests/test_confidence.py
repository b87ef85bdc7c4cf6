"""Weights of views by their blur, captures and views that look sharp, and the penalty that closes small kernels only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.scene.confidence import (
    HALF_PENALTY_SHARE,
    SHARP_PX,
    blur_penalty,
    looks_sharp,
    pose_trust,
    sharp_views,
    view_confidence,
)


def test_sharper_views_count_more_and_one_on_average():
    blur_px = jnp.array([1e-3, 1.0, 2.0, 3.0, 4.0])
    weights = view_confidence(blur_px, 1.0)
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-6)
    half = 2.0**2 + SHARP_PX**2  # the median counts half (SHARP_PX adds little)
    np.testing.assert_allclose(weights[2] / weights[0], half / (half + 2.0**2), rtol=1e-5)
    assert (jnp.diff(weights) < 0).all()
    far = [view_confidence(scale * blur_px, 1.0) for scale in (100.0, 1000.0)]
    np.testing.assert_allclose(*far, rtol=1e-4)  # independent of image size
    barely = view_confidence(jnp.array([0.01, 0.05, 0.1]), 1.0)  # blur below a pixel makes no difference
    np.testing.assert_allclose(barely, 1.0, atol=0.1)
    np.testing.assert_array_equal(view_confidence(blur_px, 0.0), jnp.ones(5))
    np.testing.assert_allclose(view_confidence(jnp.zeros(5), 1.0), 1.0, rtol=1e-6)  # no view has had a step
    one_seen = jnp.array([0.0, 2.0, 0.0])  # the others get the median: that of the one view
    np.testing.assert_allclose(view_confidence(one_seen, 1.0), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("blur_px", "sharp"),
    [
        ([0.1, 0.2, 0.3, 0.4], True),
        ([0.1] * 19 + [5.0], True),  # one outlier does not make a blurry capture
        ([0.1] * 8 + [2.0] * 2, False),
        ([0.5] * 5 + [0.9] * 5, False),
        ([0.8] * 5 + [1.3] * 5, False),
        ([0.8] * 5 + [0.95] * 5, True),  # kernels of sharp photographs, where splats are large against the pixel
        ([0.1] * 5 + [0.45] * 5, True),  # a sharp capture early in training
        ([2.0] * 10, False),  # all out of focus
        ([0.0] * 10, False),  # no view has had a step
        ([0.0] * 6 + [0.2] * 4, True),
        ([0.0] * 6 + [0.1] * 2 + [0.7] * 2, False),
        ([0.0] * 6 + [0.7] * 4, True),
    ],
)
def test_a_capture_looks_sharp_if_nearly_all_views_have_equal_small_blur(blur_px, sharp):
    assert bool(jax.jit(looks_sharp)(jnp.array(blur_px))) == sharp
    assert bool(looks_sharp(jnp.array(blur_px[::-1]))) == sharp


def test_views_are_sharp_relative_to_the_median():
    blur_px = jnp.array([0.0, 1e-3, 0.5, 0.7, 1.0, 1.0, 1.1, 5.0])  # the first has had no step yet; median 1
    np.testing.assert_array_equal(sharp_views(blur_px), [False, True, True] + 5 * [False])
    np.testing.assert_array_equal(sharp_views(3.0 * blur_px), sharp_views(blur_px))  # independent of image size
    assert not sharp_views(jnp.array([0.4, 0.4, 0.5, 0.5])).any()  # equal blur: no view is sharper than the others
    assert not sharp_views(jnp.zeros(3)).any() and not sharp_views(jnp.array([2.0])).any()


@pytest.mark.parametrize(
    "blur_px, half", [([0.0, 0.0], SHARP_PX), ([0.1, 0.2], SHARP_PX), ([0.0, 0.5, 2.0, 9.0], HALF_PENALTY_SHARE * 2.0)]
)
def test_penalty_closes_small_kernels_and_leaves_wide_ones(blur_px, half):
    """Small relative to the median, or below SHARP_PX; views without a step yet have no influence."""
    penalty = functools.partial(blur_penalty, blur_px=jnp.array(blur_px))
    assert penalty(jnp.float32(0.0)) == 0.0
    np.testing.assert_allclose(penalty(jnp.float32(half**2)), 0.5, rtol=1e-6)
    slope = jax.grad(penalty)
    assert slope((8 * half) ** 2) < 0.01 * slope((2 * half) ** 2) < 0.01 * slope(0.0)
    assert 0.99 < penalty(jnp.float32(1e6)) <= 1.0


def test_poses_of_sharp_views_are_trusted():
    """The trust is bounded by SHARP_PX; a view without a step yet counts as blurred by about a pixel."""
    trust = pose_trust(jnp.array([0.0, 1e-3, 0.5, 1.0, 4.0]))
    np.testing.assert_allclose(trust, [1.0, 16.0, 1 / 0.3125, 1 / 1.0625, 1 / 16.0625], rtol=1e-4)
