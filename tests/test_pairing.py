"""Pairing of photographs and poses. Unpaired ones are named in a note, not fatal."""

import math
import struct
import unicodedata

import numpy as np
import pytest
from captures import (
    FOCAL,
    NAMES,
    WRITERS,
    assert_refused,
    expect_pixels,
    make_frame,
    project,
    to_binary,
    write_colmap,
    write_json,
    write_nerfstudio,
    write_photos,
)
from PIL import Image

from bags_jax.data import load_scene
from bags_jax.data.pairing import match_photos
from bags_jax.errors import UserError


def test_unpaired_are_counted_and_named(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    (tmp_path / "images" / NAMES[4]).unlink()
    for i in range(7):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"x{i}.jpg")
    (tmp_path / "images" / "._v0.png").write_text("macOS leaves such files")
    (tmp_path / "images" / ".thumbnails").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / ".thumbnails" / "v0.png")
    scene = load_scene(str(tmp_path))
    assert scene.names == tuple(name for name in NAMES if name != NAMES[4])
    poses, photos = scene.notes
    assert poses == "1 poses have no photograph, left out: v4.png"
    assert photos == "7 photographs have no pose, left out: x0.jpg, x1.jpg, x2.jpg, x3.jpg, x4.jpg and 2 more"


@pytest.mark.parametrize("writer", ["blender", "nerfstudio"])
def test_missing_frames_are_named(tmp_path, writer):
    write_photos(tmp_path / "images")
    WRITERS[writer](tmp_path)
    (tmp_path / "images" / NAMES[4]).unlink()
    scene = load_scene(str(tmp_path))
    assert len(scene.names) == 5 and any("1 poses have no photograph" in note and "v4" in note for note in scene.notes)


def test_points_that_are_not_finite_and_no_points(tmp_path):
    write_photos(tmp_path / "images")
    folder = write_colmap(tmp_path)
    to_binary(folder)
    data = bytearray((folder / "points3D.bin").read_bytes())
    struct.pack_into("<d", data, 16, math.nan)
    (folder / "points3D.bin").write_bytes(data)
    scene = load_scene(str(tmp_path))
    assert scene.points.shape == (3, 3) and scene.notes == ("1 of 4 points are not finite or too far away, left out",)
    (folder / "points3D.bin").write_bytes(bytes(8))
    assert load_scene(str(tmp_path)).points.shape == (0, 3)


def test_match_photos():
    assert match_photos(["a/0.png", "1.png"], ["a/0.jpg", "b/0.jpg", "1.png", "1.jpg"]) == {
        "a/0.png": "a/0.jpg",
        "1.png": "1.png",
    }
    assert match_photos(["input/0.png"], ["0.jpg"]) == {"input/0.png": "0.jpg"}
    assert match_photos(["0.png"], ["a/0.png", "b/0.png"]) == {}
    with pytest.raises(UserError, match="could be any of"):
        match_photos(["0.png"], ["0.jpg", "0.tif"])
    with pytest.raises(UserError, match="one file"):
        match_photos(["a/0.png", "b/0.png"], ["0.png"])


def test_match_photos_ignores_folders_only_if_no_folder_matches():
    here = {"cam0/0.png": "cam0/0.png"}
    assert match_photos(["cam0/0.png", "cam0/1.png"], ["cam0/0.png", "cam1/1.png"]) == here
    assert match_photos(["cam0/0.png", "cam0/1.png", "cam1/1.png"], ["cam0/0.png", "cam1/1.png"]) == {
        **here,
        "cam1/1.png": "cam1/1.png",
    }
    assert match_photos(["cam0/0.png", "cam0/1.png"], ["left/0.jpg", "left/1.jpg"]) == {
        "cam0/0.png": "left/0.jpg",
        "cam0/1.png": "left/1.jpg",
    }


def test_match_photos_of_another_spelling():
    composed, separate = (unicodedata.normalize(form, "é/ü") for form in ("NFC", "NFD"))
    for model, disk in ((composed, separate), (separate, composed)):
        files = [f"{disk}.JPG", f"{disk}.png", f"{disk}2.tif"]
        assert match_photos([f"{model}.jpg", f"{model}2.png"], files) == {
            f"{model}.jpg": f"{disk}.JPG",
            f"{model}2.png": f"{disk}2.tif",
        }


def test_missing_photograph_of_a_rig(tmp_path):
    names = [f"cam{i % 2}/v{i // 2}.png" for i in range(6)]
    for name, pixels in zip(names, expect_pixels()):
        write_photos(tmp_path / "images" / name[:4], [pixels], names=[name[5:]])
    (tmp_path / "images" / "cam0" / "v1.png").unlink()
    write_colmap(tmp_path, names=names)
    scene = load_scene(str(tmp_path))
    assert len(scene.names) == 5 and scene.notes == ("1 poses have no photograph, left out: cam0/v1.png",)


def normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@pytest.mark.parametrize(
    ("file_path", "on_disk"),
    [
        ("images/v{}", "images/v{}.PNG"),
        ("images/v.{}", "images/v.{}.Png"),
        ("images/v{}.png", "images/v{}.PNG"),
        ("images/v{}.jpg", "images/v{}.png"),
        (unicodedata.normalize("NFC", "é/ü{}.png"), unicodedata.normalize("NFD", "é/ü{}.png")),
        (unicodedata.normalize("NFD", "é/ü{}.png"), unicodedata.normalize("NFC", "é/ü{}.png")),
    ],
)
def test_frame_of_another_spelling(tmp_path, file_path, on_disk):
    names = [on_disk.format(i) for i in range(6)]
    write_photos((tmp_path / names[0]).parent, names=[name.split("/")[1] for name in names])
    frames = [make_frame(i, file_path.format(i)) for i in range(6)]
    write_json(tmp_path / "transforms.json", {"fl_x": FOCAL, "test_filenames": [file_path.format(3)], "frames": frames})
    scene = load_scene(str(tmp_path))
    # normalize: on macOS the file system decides the spelling.
    assert [normalize(name) for name in scene.names] == [
        normalize(name.split("/")[1]) for name in names
    ] and scene.notes == ()
    assert scene.test_ids.tolist() == [3]
    np.testing.assert_allclose(project(scene), expect_pixels(), atol=1e-3)


def test_frame_that_matches_several_pictures(tmp_path):
    write_photos(tmp_path / "images")
    (tmp_path / "images" / "v0.png").rename(tmp_path / "images" / "v0.jpg")
    (tmp_path / "images" / "v0.TIF").touch()
    write_nerfstudio(tmp_path)
    assert_refused(tmp_path, "v0.png could be any of the files v0.TIF, v0.jpg")
