"""RealX3D and ExBluRF: data sets whose files say more of an exposure than one pose, on small folders in their layout."""

import shutil

import numpy as np
import pytest
from captures import (
    CENTERS,
    DOWN,
    FOCAL,
    FORWARD,
    NAMES,
    RIGHT,
    H,
    W,
    assert_refused,
    expect_pixels,
    project,
    write_colmap,
    write_llff,
    write_photos,
)
from scipy.spatial.transform import Rotation, Slerp

from bags_jax.data import load_scene
from bags_jax.data.load import measure_capture
from bags_jax.data.poses import find_middle, make_rigid, make_rotation

TRAIN, TEST = NAMES[:4], NAMES[4:]


def write_realx3d(root):
    """Photographs of train/ and test/ have names of their own; val/ repeats those of train/; the model knows no folders."""
    pixels = expect_pixels()
    write_photos(root / "train", pixels[:4], names=TRAIN)
    write_photos(root / "val", pixels[:4], names=TRAIN)
    write_photos(root / "test", pixels[4:], names=TEST)
    write_colmap(root)
    for name in ("train", "val", "test"):
        (root / f"transforms_{name}.json").write_text('{"frames": []}')  # of another frame: must not be read
    return root


@pytest.fixture(scope="module")
def realx3d(tmp_path_factory):
    return write_realx3d(tmp_path_factory.mktemp("motion_strong") / "Scene")


def copy(scene, tmp_path):
    return shutil.copytree(scene, tmp_path / "copy")


# --- RealX3D ---------------------------------------------------------------------------------------------------------


def test_realx3d_holds_out_its_sharp_test_views(realx3d):
    scene = load_scene(realx3d)
    assert scene.names == tuple(f"test/{name}" for name in TEST) + tuple(f"train/{name}" for name in TRAIN)
    assert [scene.names[i] for i in scene.test_ids] == [f"test/{name}" for name in TEST]
    assert len(scene.train_ids) == 4 and len(scene.points) == 4 and not scene.notes
    np.testing.assert_allclose(project(scene), expect_pixels()[[4, 5, 0, 1, 2, 3]], atol=1e-3)
    assert measure_capture(realx3d).num_views == 6


def test_realx3d_names_may_have_folders_in_the_model(realx3d, tmp_path):
    root = copy(realx3d, tmp_path)
    text = (root / "sparse" / "0" / "images.txt").read_text()
    for name in NAMES:
        text = text.replace(name, f"{'train' if name in TRAIN else 'test'}/{name}")
    (root / "sparse" / "0" / "images.txt").write_text(text)
    (root / "train" / TRAIN[0]).unlink()
    scene = load_scene(root, format="realx3d")
    assert len(scene.train_ids) == 3 and len(scene.test_ids) == 2
    assert scene.notes == (f"1 poses have no photograph, left out: train/{TRAIN[0]}",)


@pytest.mark.parametrize(
    "gone, match",
    [
        ("train", r"train is missing or has no photographs: a RealX3D scene is train/ \(blurred\), test/"),
        ("test", r"test is missing or has no photographs"),
        ("sparse", r"has no COLMAP model, expected sparse/0 beside train/ and test/"),
        ("sparse/0/images.txt", r"images.txt is missing: a COLMAP model is"),
    ],
)
def test_incomplete_realx3d_folders_are_one_line(realx3d, tmp_path, gone, match):
    root = copy(realx3d, tmp_path)
    path = root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_refused(root, match, format="realx3d")


def test_realx3d_photographs_that_do_not_fit_the_model_are_one_line(realx3d, tmp_path):
    root = copy(realx3d, tmp_path)
    shutil.copy(root / "train" / TRAIN[0], root / "test" / TRAIN[0])
    assert_refused(root, f"{TRAIN[0]} could be in train/ or test/", format="realx3d")
    (root / "test" / TRAIN[0]).unlink()
    for name in TEST:
        (root / "test" / name).rename(root / "test" / f"other_{name}")
    assert_refused(root, r"none of the 6 images of .* is in .*test", format="realx3d")


# --- ExBluRF ---------------------------------------------------------------------------------------------------------


def make_paths(num_poses):
    """Camera centres [V, S, 3] and world-from-camera rotations [V, S, 3, 3] over each exposure."""
    times = np.linspace(-1.0, 1.0, num_poses)
    turns = Rotation.from_rotvec(np.outer(times, [0.02, -0.03, 0.05])).as_matrix()
    base = np.stack([RIGHT, DOWN, FORWARD], axis=-1)
    return CENTERS[:, None] + times[None, :, None] * [0.1, 0.2, -0.1], np.einsum("vij,sjk->vsik", base, turns)


def write_exblurf(root, num_poses):
    """Poses of the START of each exposure in poses_bounds.npy, all of them in poses_bounds_subframes.npy."""
    write_photos(root / "images")
    write_llff(root)
    centers, rotations = make_paths(num_poses)
    right, down, forward = np.moveaxis(rotations, -1, 0)
    size = np.broadcast_to([H, W, FOCAL], centers.shape)
    matrices = np.stack([down, right, -forward, centers, size], axis=-1).reshape(len(NAMES), num_poses, 15)
    rows = np.concatenate([matrices, np.broadcast_to([1.0, 9.0], (len(NAMES), num_poses, 2))], axis=-1)
    np.save(root / "poses_bounds.npy", rows[:, 0])
    np.save(root / "poses_bounds_subframes.npy", rows)
    return centers, rotations


@pytest.mark.parametrize("num_poses", [2, 5, 6])
def test_training_views_get_the_pose_in_the_middle_of_their_exposure(tmp_path, num_poses):
    """Of an even number it is interpolated; held-out views keep the pose of poses_bounds.npy."""
    centers, rotations = write_exblurf(tmp_path, num_poses)
    scene = load_scene(tmp_path, holdout=3)
    assert list(scene.test_ids) == [0, 3]
    for i, viewmat in enumerate(scene.viewmats):
        times, time = np.arange(num_poses), 0.0 if i in (0, 3) else (num_poses - 1) / 2
        rotation = Slerp(times, Rotation.from_matrix(rotations[i]))([time]).as_matrix()[0]
        center = [np.interp(time, times, centers[i, :, axis]) for axis in range(3)]
        np.testing.assert_allclose(viewmat[:3, :3], rotation.T, atol=1e-6)
        np.testing.assert_allclose(-viewmat[:3, :3].T @ viewmat[:3, 3], center, atol=1e-6)
    (note,) = scene.notes
    assert note.startswith(f"poses of training views are those in the middle of their {num_poses} poses in")


def test_damaged_paths_of_exblurf_are_one_line(tmp_path):
    write_exblurf(tmp_path, 3)
    path = tmp_path / "poses_bounds_subframes.npy"
    rows = np.load(path)
    for bad, match in (
        (rows[:4], r"poses_bounds_subframes.npy has 4 views, poses_bounds.npy 6: expected the same"),
        (rows[:, 0], r"holds \(6, 17\): expected an array \[views, poses in the exposure, 17\]"),
        (rows[:, :0], r"holds no pose"),
        (np.full_like(rows, np.nan), r"the pose of view v1.png is not finite"),
    ):
        np.save(path, bad)
        assert_refused(tmp_path, match)


def test_middle_of_two_poses_is_half_the_turn_and_half_the_way():
    turn, shift = np.array([0.3, -0.9, 0.5]), np.array([0.4, 0.2, -0.6])
    first = make_rigid(make_rotation(np.array([0.2, 0.1, 0.0])), np.array([1.0, 2.0, 3.0]))
    center = -first[:3, :3].T @ first[:3, 3]
    there, halfway = (make_rotation(t * turn) @ first[:3, :3] for t in (1.0, 0.5))
    last = make_rigid(there, -there @ (center + shift))
    middle = find_middle(np.stack([first, last]))
    np.testing.assert_allclose(middle[:3, :3], halfway, atol=1e-12)
    np.testing.assert_allclose(-middle[:3, :3].T @ middle[:3, 3], center + 0.5 * shift, atol=1e-12)
    np.testing.assert_array_equal(find_middle(np.stack([first, last, first])), last)
