"""What blur says of a capture: whom to believe, whether it is sharp, and what closes small kernels alone."""

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
    half = 2.0**2 + SHARP_PX**2  # the median counts half, next to nothing aside
    np.testing.assert_allclose(weights[2] / weights[0], half / (half + 2.0**2), rtol=1e-5)
    assert (jnp.diff(weights) < 0).all()
    far = [view_confidence(scale * blur_px, 1.0) for scale in (100.0, 1000.0)]
    np.testing.assert_allclose(*far, rtol=1e-4)  # no matter the resolution
    barely = view_confidence(jnp.array([0.01, 0.05, 0.1]), 1.0)  # what no photograph shows makes no difference
    np.testing.assert_allclose(barely, 1.0, atol=0.1)
    np.testing.assert_array_equal(view_confidence(blur_px, 0.0), jnp.ones(5))
    np.testing.assert_allclose(view_confidence(jnp.zeros(5), 1.0), 1.0, rtol=1e-6)  # nothing known yet
    one_seen = jnp.array([0.0, 2.0, 0.0])  # the others are taken to be as it is
    np.testing.assert_allclose(view_confidence(one_seen, 1.0), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("blur_px", "sharp"),
    [
        ([0.1, 0.2, 0.3, 0.4], True),
        ([0.1] * 19 + [5.0], True),  # one that is out of line does not make a blurry capture
        ([0.1] * 8 + [2.0] * 2, False),
        ([0.5] * 5 + [0.9] * 5, False),
        ([0.8] * 5 + [1.3] * 5, False),
        ([0.8] * 5 + [0.95] * 5, True),  # kernels of sharp photographs, where splats are large against the pixel
        ([0.1] * 5 + [0.45] * 5, True),  # on their way to it: the gate stays open
        ([2.0] * 10, False),  # out of focus, all of them
        ([0.0] * 10, False),  # none seen
        ([0.0] * 6 + [0.2] * 4, True),
        ([0.0] * 6 + [0.1] * 2 + [0.7] * 2, False),
        ([0.0] * 6 + [0.7] * 4, True),
    ],
)
def test_a_capture_looks_sharp_when_nearly_all_of_it_is_blurred_alike(blur_px, sharp):
    assert bool(jax.jit(looks_sharp)(jnp.array(blur_px))) == sharp
    assert bool(looks_sharp(jnp.array(blur_px[::-1]))) == sharp


def test_views_are_sharp_beside_blurrier_ones():
    blur_px = jnp.array([0.0, 1e-3, 0.5, 0.7, 1.0, 1.0, 1.1, 5.0])  # the first has not been seen yet; median 1
    np.testing.assert_array_equal(sharp_views(blur_px), [False, True, True] + 5 * [False])
    np.testing.assert_array_equal(sharp_views(3.0 * blur_px), sharp_views(blur_px))  # no matter the resolution
    assert not sharp_views(jnp.array([0.4, 0.4, 0.5, 0.5])).any()  # all alike: nobody says where sharpness ends
    assert not sharp_views(jnp.zeros(3)).any() and not sharp_views(jnp.array([2.0])).any()


@pytest.mark.parametrize(
    "blur_px, half", [([0.0, 0.0], SHARP_PX), ([0.1, 0.2], SHARP_PX), ([0.0, 0.5, 2.0, 9.0], HALF_PENALTY_SHARE * 2.0)]
)
def test_the_price_of_blur_closes_small_kernels_and_leaves_wide_ones_alone(blur_px, half):
    """Small beside the median, down to what no photograph shows; views not seen yet say nothing."""
    price = functools.partial(blur_penalty, blur_px=jnp.array(blur_px))
    assert price(jnp.float32(0.0)) == 0.0
    np.testing.assert_allclose(price(jnp.float32(half**2)), 0.5, rtol=1e-6)
    slope = jax.grad(price)
    assert slope((8 * half) ** 2) < 0.01 * slope((2 * half) ** 2) < 0.01 * slope(0.0)
    assert 0.99 < price(jnp.float32(1e6)) <= 1.0


def test_poses_of_sharp_views_are_trusted():
    """Down to what no photograph shows; a view not seen yet counts as one blurred by about a pixel."""
    trust = pose_trust(jnp.array([0.0, 1e-3, 0.5, 1.0, 4.0]))
    np.testing.assert_allclose(trust, [1.0, 16.0, 1 / 0.3125, 1 / 1.0625, 1 / 16.0625], rtol=1e-4)
