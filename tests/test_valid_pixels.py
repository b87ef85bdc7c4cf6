"""Masks of photographs: found and read by both conventions, and left out of losses and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from captures import (
    NAMES,
    H,
    W,
    assert_refused,
    make_frame,
    write_colmap,
    write_nerfstudio,
    write_photos,
)
from PIL import Image

from bags_jax import losses, metrics
from bags_jax.data import load_scene
from bags_jax.data.pyramid import make_dataset
from bags_jax.data.valid_pixels import shrink_valid
from bags_jax.report import no_truth

LEFT = np.arange(W) < W // 2  # the left half is masked out
HALF = np.where(LEFT, 0, 255).astype(np.uint8)[None].repeat(H, axis=0)


def write_mask(path, mask=HALF, size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    (picture.resize(size) if size else picture).save(path)


@pytest.fixture
def capture(tmp_path):
    """A COLMAP scene without masks."""
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    return tmp_path


@pytest.mark.parametrize("end", ["", ".png"])  # v0.png, and COLMAP's v0.png.png
def test_masks_beside_the_photographs(capture, end):
    for name in NAMES[:2]:
        write_mask(capture / "masks" / f"{name}{end}")
    scene = load_scene(str(capture))
    assert scene.valid is not None
    np.testing.assert_array_equal(scene.valid[0], HALF > 0)
    np.testing.assert_array_equal(scene.valid[1], HALF > 0)
    assert all(valid.all() for valid in scene.valid[2:])
    assert any("4 photographs have no mask, used whole" in note for note in scene.notes)
    assert any("masks leave out 16.7% of the pixels" in note for note in scene.notes)


def test_no_masks_no_arrays(capture):
    scene = load_scene(str(capture))
    assert scene.valid is None and make_dataset(scene, 1.0).valid is None


def test_masks_that_nerfstudio_names(tmp_path):
    write_photos(tmp_path / "images")
    write_mask(tmp_path / "m.png")
    frames = [{**make_frame(i, f"images/{name}"), "mask_path": "m.png"} for i, name in enumerate(NAMES)]
    write_nerfstudio(tmp_path, frames=frames)
    scene = load_scene(str(tmp_path))
    assert scene.valid is not None and all((valid == (HALF > 0)).all() for valid in scene.valid)
    (tmp_path / "m.png").unlink()
    assert_refused(tmp_path, "frame 0: the mask .*m.png does not exist: expected a picture; correct mask_path")


def test_masks_shrink_with_the_photographs(capture):
    for name in NAMES:
        write_mask(capture / "masks" / name)
    scene = load_scene(str(capture), factor=2)
    assert scene.valid is not None
    np.testing.assert_array_equal(scene.valid[0], np.broadcast_to(np.arange(W // 2) >= W // 4, (H // 2, W // 2)))
    quarter = make_dataset(scene, 0.5).valid
    np.testing.assert_array_equal(quarter[0], np.broadcast_to(np.arange(W // 4) >= W // 8, (H // 4, W // 4)))


def test_a_pixel_is_valid_where_its_whole_area_is():
    valid = np.ones((6, 8), bool)
    valid[0, 0] = valid[3, 5] = False
    expected = np.ones((3, 4), bool)
    expected[0, 0] = expected[1, 2] = False
    np.testing.assert_array_equal(shrink_valid(valid, 3, 4), expected)


def test_lenses_bend_masks_as_they_bend_photographs(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path, camera=f"SIMPLE_RADIAL {W} {H} 60 {W / 2} {H / 2} -0.1")
    for name in NAMES:
        write_mask(tmp_path / "masks" / name)
    scene = load_scene(str(tmp_path))
    assert scene.valid is not None and scene.valid[0].shape == scene.images[0].shape[:2]
    share = scene.valid[0].mean(axis=0)
    assert (share[: len(share) // 2 - 1] == 0).all() and (share[len(share) // 2 + 1 :] > 0.9).all()


def test_bad_masks_are_refused(capture):
    write_mask(capture / "masks" / "other.png")
    assert_refused(capture, "masks has 1 pictures, but none belongs to a photograph: expected v0.png or v0.png.png")
    write_mask(capture / "masks" / NAMES[0], size=(W + 2, H))
    assert_refused(capture, f"v0.png is {W + 2} x {H}, its photograph {W} x {H}: expected the same size; resize")
    write_mask(capture / "masks" / NAMES[0], mask=np.zeros((H, W), np.uint8))
    assert_refused(capture, "leaves no pixel of v0.png: expected white where pixels are used; invert it")
    (capture / "masks" / NAMES[0]).write_bytes(b"no picture")
    assert_refused(capture, "cannot read .*v0.png as a picture")


@pytest.mark.parametrize("kind", ["RGBA", "1", "I;16"])
def test_masks_of_any_mode(capture, kind):
    mask = Image.fromarray(HALF)
    if kind == "I;16":
        mask = Image.fromarray(HALF.astype(np.uint16) * 257)
    write_mask(capture / "masks" / NAMES[0])
    (mask if kind == "I;16" else mask.convert(kind)).save(capture / "masks" / NAMES[0])
    scene = load_scene(str(capture))
    assert scene.valid is not None
    np.testing.assert_array_equal(scene.valid[0], HALF > 0)


def test_losses_and_scores_do_not_see_masked_pixels():
    keys = jax.random.split(jax.random.key(0), 3)
    image, photo, rubbish = (np.asarray(jax.random.uniform(key, (40, 48, 3))) for key in keys)
    valid = np.broadcast_to(np.arange(48) >= 20, (40, 48))
    spoilt = np.where(valid[..., None], photo, rubbish)
    for score in (metrics.deblur_nerf, metrics.gaussian_splatting):
        scores = score(image, photo, valid)
        assert scores == score(image, spoilt, valid) and scores != score(image, spoilt)
        np.testing.assert_allclose(scores.psnr, score(image[:, 20:], photo[:, 20:]).psnr, rtol=1e-6)
    aligned = metrics.shift_aligned_psnr(image, photo, valid)
    assert aligned == metrics.shift_aligned_psnr(image, spoilt, valid)
    eight = [np.rint(255 * x).astype(np.uint8) for x in (photo, spoilt)]
    one, other = (no_truth.score_training_view(image, image, x, valid) for x in eight)
    assert one["reblur_PSNR"] == other["reblur_PSNR"]
    image, photo, spoilt, valid = map(jnp.asarray, (image, photo, spoilt, valid))
    for loss in (losses.l1, losses.mse, losses.ssim):
        assert loss(image, photo, valid) == loss(image, spoilt, valid)
        slope = jax.grad(loss)(image, photo, valid)
        assert not slope[:, :20].any() and slope[:, 20:].any()
