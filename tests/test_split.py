"""Held-out views: by the published rule, by a file hold=N, by the lists of a capture."""

import math

import numpy as np
import pytest
from captures import (
    FOCAL,
    NAMES,
    W,
    assert_refused,
    expect_pixels,
    make_frame,
    project,
    write_blender,
    write_json,
    write_nerfstudio,
    write_photos,
)

from bags_jax.data import load_scene
from bags_jax.data.split import find_holdout_every, split_every
from bags_jax.errors import UserError


def test_split_rule(tmp_path):
    train_ids, test_ids = split_every(10, every=4)
    assert test_ids.tolist() == [0, 4, 8] and train_ids.tolist() == [1, 2, 3, 5, 6, 7, 9]
    assert find_holdout_every(tmp_path) == 8
    (tmp_path / "hold=3").touch()
    assert find_holdout_every(tmp_path) == 3 and find_holdout_every(tmp_path, 5) == 5
    (tmp_path / "hold=4").touch()
    with pytest.raises(UserError, match="keep or fix one"):
        find_holdout_every(tmp_path)
    with pytest.raises(UserError, match="1 of 2 views are left for training"):
        split_every(2, every=8)


@pytest.mark.parametrize("mark", ["hold=x", "hold=0", "hold=-3"])
def test_bad_hold_file(tmp_path, mark):
    (tmp_path / mark).touch()
    with pytest.raises(UserError, match="expected one file named hold=N"):
        find_holdout_every(tmp_path)


def test_holdout_options(tmp_path):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path)
    assert load_scene(str(tmp_path), holdout=2).test_ids.tolist() == [0, 2, 4]
    assert_refused(tmp_path, "0 of 6 views are left", holdout=1)
    assert_refused(tmp_path, "holdout is -1", holdout=-1)


def test_blender_lists(tmp_path):
    write_photos(tmp_path / "images")
    write_blender(tmp_path, test=(2, 5), suffix=".png")
    scene = load_scene(str(tmp_path), holdout=4)
    assert scene.test_ids.tolist() == [2, 5] and scene.train_ids.tolist() == [0, 1, 3, 4]
    assert any("holdout is ignored" in note for note in scene.notes)


def test_blender_in_train_and_test_folders(tmp_path):
    pixels = expect_pixels()
    for folder, ids in (("train", (1, 2, 3)), ("test", (0,))):
        write_photos(tmp_path / folder, pixels[list(ids)], names=[f"r_{i}.png" for i in ids])
        frames = [make_frame(i, f"./{folder}/r_{i}") for i in ids]
        values = {"camera_angle_x": 2 * math.atan(0.5 * W / FOCAL), "frames": frames}
        write_json(tmp_path / f"transforms_{folder}.json", values)
    scene = load_scene(str(tmp_path))
    assert scene.names == ("test/r_0.png", "train/r_1.png", "train/r_2.png", "train/r_3.png")
    assert scene.test_ids.tolist() == [0] and scene.train_ids.tolist() == [1, 2, 3]
    np.testing.assert_allclose(project(scene), pixels[:4], atol=1e-3)


def test_nerfstudio_lists(tmp_path):
    write_photos(tmp_path / "images")
    listed = {"train_filenames": ["./images/v1.png", "images/v2.png", "images/v4.png"]}
    write_nerfstudio(tmp_path, **listed, test_filenames=["images/v3.png"], val_filenames=["images/v5.png"])
    scene = load_scene(str(tmp_path))
    assert scene.names == ("v1.png", "v2.png", "v3.png", "v4.png")
    assert scene.test_ids.tolist() == [2] and scene.train_ids.tolist() == [0, 1, 3]
    assert any("2 frames are in neither split" in note for note in scene.notes)


@pytest.mark.parametrize("key", ["train_filenames", "test_filenames", "val_filenames"])
def test_lists_with_names_of_no_frame(tmp_path, key):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path, **{key: ["v0.png", "v1.png"]})
    if key == "val_filenames":  # views for validation are left out anyway
        assert "2 of the 2 names in val_filenames are no frame's: v0.png, v1.png" in load_scene(str(tmp_path)).notes
    else:
        assert_refused(tmp_path, f"none of the 2 names in {key} .*the list has v0.png, the first frame images/v0.png")
    write_nerfstudio(tmp_path, **{key: ["v0.png", *(str(tmp_path / "images" / name) for name in NAMES[2:5])]})
    scene = load_scene(str(tmp_path))
    assert f"1 of the 4 names in {key} are no frame's: v0.png" in scene.notes
    if key == "test_filenames":
        assert scene.test_ids.tolist() == [2, 3, 4]
