"""Structure from motion: the cameras of an embedded scene are recovered; bad input is refused and writes nothing."""

import numpy as np
import pytest
from PIL import Image

from bags_jax.data import load_scene
from bags_jax.data.poses import locate_cameras
from bags_jax.errors import UserError
from bags_jax.sfm.reconstruct import describe, reconstruct
from bags_jax.synthetic import make_scene

NUM, WIDTH, HEIGHT = 12, 320, 208


def write_photos(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")


@pytest.fixture(scope="module")
def truth():
    return make_scene("none", width=WIDTH, height=HEIGHT, num_train=NUM, num_test=0, num_points=0)


@pytest.fixture(scope="module")
def result(truth, tmp_path_factory):
    """Returns a capture's folder, its reconstruction and the reported lines.

    The photographs are sharp. The last photograph of the scene has half the size. One more photograph is gray.
    """
    root, lines = tmp_path_factory.mktemp("capture"), []
    images = [np.asarray(image) for image in truth.images]
    half = np.asarray(Image.fromarray(images[-1]).reduce(2))
    write_photos(root / "images", [*images[:-1], half, np.full((HEIGHT, WIDTH, 3), 128, np.uint8)])
    return root, reconstruct(root, report=lines.append), lines


def similarity_residual(points, target):
    """Returns the distance of points from a target, over its spread, after the best similarity (Umeyama 1991)."""
    points, target = points - points.mean(0), target - target.mean(0)
    left, singular, right = np.linalg.svd(target.T @ points)
    flip = np.diag([1.0, 1.0, np.linalg.det(left @ right)])
    scale = np.sum(singular * np.diag(flip)) / np.sum(points**2)
    moved = scale * points @ (left @ flip @ right).T
    return np.sqrt(np.sum((moved - target) ** 2) / np.sum(target**2))


def test_cameras_of_the_scene_are_recovered(truth, result):
    root, reconstruction, _ = result
    scene = load_scene(str(root))
    assert scene.names == reconstruction.posed_names == tuple(f"{number:03d}.png" for number in range(NUM))
    # Measured: 0.005, and 0.3 % of the focal length. COLMAP's threads are not deterministic.
    assert similarity_residual(locate_cameras(scene.viewmats), locate_cameras(truth.viewmats)) < 0.03
    focals, smaller = scene.Ks[:-1, 0, 0], scene.Ks[-1, 0, 0]
    np.testing.assert_allclose(focals, truth.Ks[:-1, 0, 0], rtol=0.05)
    np.testing.assert_allclose(smaller, truth.Ks[-1, 0, 0] / 2, rtol=0.05)
    assert len(scene.points) == reconstruction.num_points > 200 and 0 < reconstruction.error_px < 1


def test_features_of_smaller_copies_are_as_good(truth, result, tmp_path):
    """Features of smaller copies are known to 1 px of the copy: COLMAP's tolerances must grow with the photograph."""
    size = 4 * WIDTH, 4 * HEIGHT
    write_photos(
        tmp_path / "images", [np.asarray(Image.fromarray(np.asarray(image)).resize(size)) for image in truth.images]
    )
    enlarged = reconstruct(tmp_path, max_size=WIDTH)
    assert len(enlarged.posed_names) == NUM
    # The ratio is 0.5 with COLMAP's own tolerances, 0.9 with the scaled ones.
    np.testing.assert_allclose(enlarged.error_px, 4 * result[1].error_px, rtol=0.25)
    centers = locate_cameras(load_scene(str(tmp_path), factor=4).viewmats)
    assert similarity_residual(centers, locate_cameras(truth.viewmats)) < 0.03


def test_lost_photographs_are_named(result):
    root, reconstruction, lines = result
    assert reconstruction.lost_names == (f"{NUM:03d}.png",)
    assert describe(reconstruction).startswith(f"{NUM} of {NUM + 1} photographs have a pose (without: {NUM:03d}.png)")
    assert any(f"of {NUM} photographs of {WIDTH} x {HEIGHT} px" in line for line in lines)
    assert {path.name for path in root.iterdir()} == {"images", "sparse"}


def test_existing_poses_stay(result):
    root, _, _ = result
    before = (root / "sparse" / "0" / "images.bin").read_bytes()
    with pytest.raises(UserError, match="camera poses already"):
        reconstruct(root)
    assert (root / "sparse" / "0" / "images.bin").read_bytes() == before


@pytest.mark.parametrize(
    "images,message",
    [
        ([], "0 photographs .* expected 3 or more that overlap"),
        ([np.full((64, 64, 3), 128, np.uint8)] * 2, "2 photographs"),
        ([np.full((64, 64, 3), 128, np.uint8)] * 4, "no camera poses were found for the 4 photographs"),
    ],
)
def test_unusable_photographs(tmp_path, images, message):
    write_photos(tmp_path / "images", images)
    with pytest.raises(UserError, match=message):
        reconstruct(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_file_that_is_no_photograph_is_named(tmp_path):
    write_photos(tmp_path / "images", [np.zeros((64, 64, 3), np.uint8)] * 3)
    (tmp_path / "images" / "001.png").write_text("no picture")
    with pytest.raises(UserError, match=r"001\.png"):
        reconstruct(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        reconstruct(tmp_path / "missing")


def test_folder_that_cannot_be_written(tmp_path, truth):
    write_photos(tmp_path / "images", [np.asarray(image) for image in truth.images[:6]])
    (tmp_path / "sparse").write_text("mine")
    with pytest.raises(UserError, match="sparse cannot be read or written"):
        reconstruct(tmp_path)
    assert (tmp_path / "sparse").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
