"""Terms of the loss: padding does not change them, and the total is their weighted sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import metrics
from bags_jax.losses import (
    blur_terms,
    clip_white,
    l1,
    mse,
    photo_terms,
    psnr_from_mse,
    squared_variation,
    total_variation,
    weighted_sum,
)
from bags_jax.ops.ssim import ssim
from bags_jax.rendering import Rendered, normalize_depth
from bags_jax.schedule import Stage
from bags_jax.settings import Loss
from bags_jax.structs import BlurMoments, Projected

H, W = 17, 21


def pair(seed: int = 0):
    rng = np.random.default_rng(seed)
    target = rng.random((H, W, 3))
    image = np.clip(target + rng.normal(size=target.shape) * 0.2, 0, 1)
    return jnp.asarray(image, jnp.float32), jnp.asarray(target, jnp.float32), jnp.ones((H, W), bool)


@pytest.mark.parametrize(
    "loss",
    [
        l1,
        mse,
        lambda image, _, valid: total_variation(image, valid),
        lambda image, _, valid: squared_variation(image, valid),
    ],
    ids=["l1", "mse", "total_variation", "squared_variation"],
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
    expected = metrics.gaussian_splatting(np.asarray(image), np.asarray(target))
    np.testing.assert_allclose(psnr_from_mse(mse(image, target, valid)), expected.psnr, rtol=1e-5)
    np.testing.assert_allclose(l1(image, target, valid), np.mean(np.abs(image - target)), rtol=1e-5)
    np.testing.assert_allclose(mse(image, target, valid), np.mean((image - target) ** 2), rtol=1e-5)
    steps = np.mean(np.abs(np.diff(image, axis=0))) + np.mean(np.abs(np.diff(image, axis=1)))
    np.testing.assert_allclose(total_variation(image, valid), steps, rtol=1e-5)
    squares = np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2)
    np.testing.assert_allclose(squared_variation(image, valid), 2 * squares, rtol=1e-5)
    np.testing.assert_allclose(psnr_from_mse(jnp.float32(0.01)), 20.0, rtol=1e-5)
    assert np.isfinite(psnr_from_mse(jnp.float32(0.0)))


def test_no_valid_pixel_is_zero_not_nan():
    image, target, valid = pair()
    for loss in (l1, mse):
        value, gradient = jax.value_and_grad(loss)(image, target, ~valid)
        assert value == 0 and not gradient.any()


def make_rendered(seed: int = 1) -> Rendered:
    rng = np.random.default_rng(seed)
    nothing = Projected(*(jnp.zeros(shape) for shape in ((1, 2), (1, 3), (1, 3), (1,), (1,), (1, 2))))
    image, depth = (jnp.asarray(rng.random(shape), jnp.float32) for shape in ((H, W, 3), (H, W)))
    return Rendered(image, 5.0 * depth, jnp.ones((H, W)), nothing, jnp.int32(0), jnp.int32(0))


def test_light_above_white_costs_nothing_where_the_photograph_is_white():
    """Elsewhere it costs as before, and its gradient darkens it."""
    photo = jnp.array([1.0, 1.0, 0.9, 0.9]).reshape(1, 4, 1)
    image = jnp.array([2.5, 0.8, 2.5, 0.8]).reshape(1, 4, 1)
    valid = jnp.ones((1, 4), bool)
    np.testing.assert_allclose(clip_white(image, photo).ravel(), [1.0, 0.8, 2.5, 0.8], rtol=1e-6)
    slope = jax.grad(lambda x: l1(clip_white(x, photo), photo, valid))(image).ravel()
    np.testing.assert_allclose(slope, [0.0, -0.25, 0.25, -0.25], rtol=1e-6)


def test_terms_of_the_photograph():
    image, photo, valid = pair()
    sharp, loss = make_rendered(), Loss(depth_tv=0.1, rgb_tv=0.2, depth_tv_squared=0.3, rgb_tv_squared=0.4)
    terms = photo_terms(image, photo, valid, sharp, loss=loss)
    expected = {
        "l1": l1(image, photo, valid),
        "dssim": 1.0 - ssim(image, photo, valid),
        "depth_tv": total_variation(normalize_depth(sharp.depth)[..., None], valid),
        "rgb_tv": total_variation(sharp.image, valid),
        "depth_tv_squared": squared_variation(normalize_depth(sharp.depth)[..., None], valid),
        "rgb_tv_squared": squared_variation(sharp.image, valid),
    }
    assert terms.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, terms, expected)
    assert photo_terms(image, photo, valid, sharp, loss=Loss()).keys() == {"l1", "dssim"}


def test_terms_of_the_blur():
    """Kernels of one width, 3 px at half scale, in the left half of the photograph; the right half is sharp."""
    mask = jnp.zeros((4, 6)).at[:, :3].set(0.5)
    moments = BlurMoments(mask, jnp.full((2, 4, 6), 1.0), jnp.stack([jnp.full((4, 6), x) for x in (9.0, 0.0, 9.0)]))
    share = jnp.full((4, 6), 1 / 24)
    stage = Stage(start=0, stop=9, scale=0.5, kernel_size=9, head=0, stride=2)
    blur_px, loss = jnp.full(3, 0.5), Loss(sharp_start=4, sharp_view_start=9)
    early, late = (
        blur_terms(moments, share, blur_px, jnp.int32(1), jnp.int32(step), stage=stage, loss=loss) for step in (3, 4)
    )
    np.testing.assert_allclose(late["mask"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(late["centroid"], 0.25 * 2, rtol=1e-6)
    step = np.sqrt(9 + 0.1**2) - 0.1  # of the width, over one of the 5 borders between columns and 2 px of stride
    np.testing.assert_allclose(late["width_tv"], step / 5 / 2, rtol=1e-5)
    assert early["sharp"] == 0.0 and 0.9 < late["sharp"] < 1.0


def test_total_is_weighted_and_leaves_out_terms_without_weight():
    terms = {name: jnp.float32(value) for name, value in {"l1": 1, "dssim": 10, "mask": 100, "sharp": jnp.nan}.items()}
    total = weighted_sum(terms, Loss(ssim=0.25, mask=0.5, sharp=0.0))
    np.testing.assert_allclose(total, 0.75 * 1 + 0.25 * 10 + 0.5 * 100)
