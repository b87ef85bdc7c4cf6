"""The scene loaders: splits, leftovers, points, and all that a user can get wrong."""

import builtins
import errno
import io
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from captures import (
    COLORS,
    FOCAL,
    NAMES,
    POINTS,
    WRITERS,
    H,
    W,
    frame,
    known_pixels,
    project,
    refused,
    to_binary,
    write_blender,
    write_colmap,
    write_json,
    write_llff,
    write_nerfstudio,
    write_photos,
)
from PIL import Image

from bags_jax.data import load_scene
from bags_jax.data.images import match_photos
from bags_jax.data.nerfstudio import read_ply_points
from bags_jax.data.split import find_hold, split_every
from bags_jax.errors import UserError

# --- leftovers are named, not fatal


def test_leftovers_are_counted_and_named(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    (tmp_path / "images" / NAMES[4]).unlink()
    for i in range(7):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"x{i}.jpg")
    (tmp_path / "images" / "._v0.png").write_text("macOS leaves such files")
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
    assert scene.points.shape == (3, 3) and scene.notes == ("1 of 4 points are not finite, left out",)
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


def test_match_photos_of_another_folder_only_where_folders_say_nothing():
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


def test_match_photos_of_other_spelling():
    composed, separate = (unicodedata.normalize(form, "é/ü") for form in ("NFC", "NFD"))
    for model, disk in ((composed, separate), (separate, composed)):
        files = [f"{disk}.JPG", f"{disk}.png", f"{disk}2.tif"]
        assert match_photos([f"{model}.jpg", f"{model}2.png"], files) == {
            f"{model}.jpg": f"{disk}.JPG",
            f"{model}2.png": f"{disk}2.tif",
        }


def test_lost_photograph_of_a_rig(tmp_path):
    names = [f"cam{i % 2}/v{i // 2}.png" for i in range(6)]
    for name, pixels in zip(names, known_pixels()):
        write_photos(tmp_path / "images" / name[:4], [pixels], names=[name[5:]])
    (tmp_path / "images" / "cam0" / "v1.png").unlink()
    write_colmap(tmp_path, names=names)
    scene = load_scene(str(tmp_path))
    assert len(scene.names) == 5 and scene.notes == ("1 poses have no photograph, left out: cam0/v1.png",)


def plain(name: str) -> str:
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
    frames = [frame(i, file_path.format(i)) for i in range(6)]
    write_json(tmp_path / "transforms.json", {"fl_x": FOCAL, "test_filenames": [file_path.format(3)], "frames": frames})
    scene = load_scene(str(tmp_path))
    # A Mac finds either spelling.
    assert [plain(name) for name in scene.names] == [plain(name.split("/")[1]) for name in names] and scene.notes == ()
    assert scene.test_ids.tolist() == [3]
    np.testing.assert_allclose(project(scene), known_pixels(), atol=1e-3)


def test_frame_that_could_be_several_pictures(tmp_path):
    write_photos(tmp_path / "images")
    (tmp_path / "images" / "v0.png").rename(tmp_path / "images" / "v0.jpg")
    (tmp_path / "images" / "v0.TIF").touch()
    write_nerfstudio(tmp_path)
    refused(tmp_path, "v0.png could be any of the files v0.TIF, v0.jpg")


# --- who is held out


def test_split_rule(tmp_path):
    train_ids, test_ids = split_every(10, hold=4)
    assert test_ids.tolist() == [0, 4, 8] and train_ids.tolist() == [1, 2, 3, 5, 6, 7, 9]
    assert find_hold(tmp_path) == 8
    (tmp_path / "hold=3").touch()
    assert find_hold(tmp_path) == 3 and find_hold(tmp_path, 5) == 5
    (tmp_path / "hold=4").touch()
    with pytest.raises(UserError, match="keep or fix one"):
        find_hold(tmp_path)
    with pytest.raises(UserError, match="1 of 2 views are left for training"):
        split_every(2, hold=8)


@pytest.mark.parametrize("mark", ["hold=x", "hold=0", "hold=-3"])
def test_bad_hold_file(tmp_path, mark):
    (tmp_path / mark).touch()
    with pytest.raises(UserError, match="expected one file named hold=N"):
        find_hold(tmp_path)


def test_holdout_options(tmp_path):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path)
    assert load_scene(str(tmp_path), holdout=2).test_ids.tolist() == [0, 2, 4]
    refused(tmp_path, "0 of 6 views are left", holdout=1)
    refused(tmp_path, "holdout is -1", holdout=-1)


def test_blender_lists(tmp_path):
    write_photos(tmp_path / "images")
    write_blender(tmp_path, test=(2, 5), suffix=".png")
    scene = load_scene(str(tmp_path), holdout=4)
    assert scene.test_ids.tolist() == [2, 5] and scene.train_ids.tolist() == [0, 1, 3, 4]
    assert any("holdout is ignored" in note for note in scene.notes)


def test_blender_in_train_and_test_folders(tmp_path):
    pixels = known_pixels()
    for folder, ids in (("train", (1, 2, 3)), ("test", (0,))):
        write_photos(tmp_path / folder, pixels[list(ids)], names=[f"r_{i}.png" for i in ids])
        frames = [frame(i, f"./{folder}/r_{i}") for i in ids]
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
def test_listed_names_that_no_frame_has(tmp_path, key):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path, **{key: ["v0.png", "v1.png"]})
    if key == "val_filenames":  # which are left out anyway
        assert "2 of the 2 names in val_filenames are no frame's: v0.png, v1.png" in load_scene(str(tmp_path)).notes
    else:
        refused(tmp_path, f"none of the 2 names in {key} .*the list has v0.png, the first frame images/v0.png")
    write_nerfstudio(tmp_path, **{key: ["v0.png", *(str(tmp_path / "images" / name) for name in NAMES[2:5])]})
    scene = load_scene(str(tmp_path))
    assert f"1 of the 4 names in {key} are no frame's: v0.png" in scene.notes
    if key == "test_filenames":
        assert scene.test_ids.tolist() == [2, 3, 4]


def test_masks_are_not_used(tmp_path):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path, frames=[{**frame(i, f"images/v{i}.png"), "mask_path": "m.png"} for i in range(6)])
    assert "6 frames have a mask_path: masks are not used" in load_scene(str(tmp_path)).notes[0]


def test_nerfstudio_lens_of_each_frame(tmp_path):
    write_photos(tmp_path / "images")
    frames = [{**frame(i, f"images/{name}"), "fl_x": 70.0 + i} for i, name in enumerate(NAMES)]
    write_json(tmp_path / "transforms.json", {"fl_x": 1.0, "frames": frames})
    scene = load_scene(str(tmp_path))
    np.testing.assert_allclose(scene.Ks[:, 0, 0], 70.0 + np.arange(6))
    np.testing.assert_allclose(scene.Ks[:, :2, 2], [[W / 2, H / 2]] * 6)


# --- points of a PLY


def ply_header(encoding, xyz="float"):
    names = [f"property {xyz} {axis}" for axis in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    return "\n".join(["ply", f"format {encoding} 1.0", "comment made here", "element vertex 4", *names, "end_header\n"])


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
def test_ply_points(tmp_path, encoding):
    rows = [(*xyz, *rgb) for xyz, rgb in zip(POINTS.tolist(), COLORS.tolist())]
    body = (
        "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
        if encoding == "ascii"
        else b"".join(struct.pack("<3f3B", *row) for row in rows)
    )
    (tmp_path / "sparse.ply").write_bytes(ply_header(encoding).encode() + body)
    write_photos(tmp_path / "images")
    write_nerfstudio(
        tmp_path, ply_file_path="sparse.ply", applied_transform=[[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
    )
    scene = load_scene(str(tmp_path))
    np.testing.assert_allclose(scene.points, POINTS, atol=1e-6)
    np.testing.assert_allclose(scene.point_colors, COLORS / 255, atol=1e-6)
    np.testing.assert_allclose(project(scene), known_pixels(), atol=1e-3)
    (tmp_path / "sparse.ply").unlink()
    assert any("sparse.ply, which is missing" in note for note in load_scene(str(tmp_path)).notes)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no ply\nend_header\n",
        ply_header("binary_big_endian").encode() + bytes(60),
        ply_header("binary_little_endian").encode() + bytes(59),
        ply_header("ascii").encode() + b"1 2 3 4 5 6\n",
        ply_header("ascii").encode() + b"1 2 3 4 5 x\n" * 4,
        ply_header("binary_little_endian", xyz="list uchar int").encode() + bytes(60),
        b"ply\nformat ascii 1.0\nelement face 1\nend_header\n",
        b"ply\nformat\nelement vertex 1\nend_header\n1\n",
    ],
)
def test_damaged_ply(tmp_path, data):
    (tmp_path / "points.ply").write_bytes(data)
    with pytest.raises(UserError, match="cannot read the points of"):
        read_ply_points(tmp_path / "points.ply")


# --- what a user can get wrong


def test_bad_folders(tmp_path):
    refused(tmp_path / "nowhere", "does not exist")
    refused(tmp_path, "is empty")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file")


def test_bad_options(tmp_path):
    write_photos(tmp_path / "images")
    refused(tmp_path, "holds 6 photographs but no camera poses")
    refused(tmp_path, "format 'splat' is unknown", format="splat")
    refused(tmp_path, "has no COLMAP model", format="colmap")
    refused(tmp_path, "transforms_train.json is missing", format="blender")
    refused(tmp_path, "transforms.json is missing", format="nerfstudio")
    refused(tmp_path, "poses_bounds.npy is missing", format="llff")
    refused(tmp_path, "factor is 0", factor=0)
    refused(tmp_path, "background is", background=(0.0, 0.0, 255.0))
    write_nerfstudio(tmp_path)
    refused(tmp_path, "leaves no pixel", factor=1000)


@pytest.mark.parametrize("writer", WRITERS)
def test_poses_without_photographs(tmp_path, writer):
    WRITERS[writer](tmp_path)
    refused(tmp_path, "has camera poses but no")
    (tmp_path / "images").mkdir()
    refused(tmp_path, "has camera poses but no")


def test_photographs_of_another_scene(tmp_path):
    write_photos(tmp_path / "images", names=[f"other{i}.png" for i in range(6)])
    write_colmap(tmp_path)
    refused(tmp_path, "none of the 6 images of")


@pytest.mark.parametrize("data", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n" + bytes(50), "half"])
def test_picture_that_is_none(tmp_path, data):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    path = tmp_path / "images" / NAMES[2]
    path.write_bytes(path.read_bytes()[:300] if data == "half" else data)
    refused(tmp_path, f"cannot read .*{NAMES[2]} as a picture")


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0])
@pytest.mark.parametrize("writer", ["colmap", "llff", "blender", "nerfstudio"])
def test_impossible_pose_names_the_view(tmp_path, writer, value):
    write_photos(tmp_path / "images")
    if writer == "colmap":
        folder = to_binary(write_colmap(tmp_path))
        data = bytearray((folder / "images.bin").read_bytes())
        record = data.index(b"v2.png") - 64  # id u32, quaternion 4 f64, translation 3 f64, camera u32, name
        frames = folder / "frames.bin"
        if frames.is_file():
            frames.unlink(), (folder / "rigs.bin").unlink()
        struct.pack_into("<d", data, record + 4 + 32, math.nan if value == 2.0 else value)
        (folder / "images.bin").write_bytes(data)
    elif writer == "llff":
        write_llff(tmp_path)
        rows = np.load(tmp_path / "poses_bounds.npy")
        rows[2, 0] = value
        np.save(tmp_path / "poses_bounds.npy", rows)
    else:
        WRITERS[writer](tmp_path)
        for path in tmp_path.glob("*.json"):
            values = json.loads(path.read_text())
            for entry in values["frames"]:
                if "v2" in entry["file_path"]:
                    entry["transform_matrix"][0][0] = value
            write_json(path, values)
    refused(tmp_path, "the pose of view v2.png is no")


def truncated(fraction):
    return lambda data: data[: int(len(data) * fraction)]


def garbage(data):
    return np.random.default_rng(0).integers(0, 256, max(len(data), 100), dtype=np.uint8).tobytes()


DAMAGES = {
    "empty": lambda data: b"",
    "4 bytes": lambda data: data[:4],
    "count only": lambda data: data[:8],
    "half": truncated(0.5),
    "last byte": lambda data: data[:-1],
    "garbage": garbage,
    "huge count": lambda data: b"\xff" * 8 + data[8:],
    "one more": lambda data: struct.pack("<Q", struct.unpack_from("<Q", data)[0] + 1) + data[8:],
    "trailing": lambda data: data + bytes(9),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file_name", ["cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin"])
def test_damaged_binary_model(tmp_path, file_name, damage):
    write_photos(tmp_path / "images")
    path = to_binary(write_colmap(tmp_path)) / file_name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    refused(tmp_path, "is damaged")


@pytest.mark.parametrize("file_name", ["cameras.txt", "images.txt", "points3D.txt"])
def test_damaged_text_model(tmp_path, file_name):
    write_photos(tmp_path / "images")
    path = write_colmap(tmp_path) / file_name
    good = path.read_text()
    for damaged in ("@#$ nonsense\n", good.replace("1 ", "one ", 1), good[: good.rindex(" ") - 8] + "x"):
        path.write_text(damaged)
        refused(tmp_path, "is damaged")
    path.unlink()
    if file_name != "points3D.txt":
        refused(tmp_path, f"{file_name} is missing")


@pytest.mark.parametrize("binary", [True, False])
def test_model_without_a_file_of_points(tmp_path, binary):
    write_photos(tmp_path / "images")
    folder = write_colmap(tmp_path)
    path = to_binary(folder) / "points3D.bin" if binary else folder / "points3D.txt"
    path.unlink()
    scene = load_scene(str(tmp_path))
    assert scene.names == NAMES and scene.points.shape == (0, 3)
    assert scene.notes == (f"{path} is missing: training starts without points",)


@pytest.mark.parametrize("binary", [True, False])
def test_rotation_of_length_0(tmp_path, binary):
    write_photos(tmp_path / "images")
    folder = write_colmap(tmp_path)
    lines = (folder / "images.txt").read_text().splitlines()
    lines[5] = "3 0 0 0 0 0 0 3 1 v2.png"
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    if binary:
        to_binary(folder)
    refused(tmp_path, r"quaternion 0 0 0 0 \(v2.png\)")


def test_two_images_of_one_name(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path, names=("v0.png", "v1.png", "v2.png", "v1.png", "v4.png", "v5.png"))
    refused(tmp_path, r"several images of one name \(v1.png\)")


def test_text_model_with_spaces_in_names(tmp_path):
    names = [f"v ({i}).png" for i in range(6)]
    write_photos(tmp_path / "images", names=names)
    write_colmap(tmp_path, names=["v0.png", *names[1:]])
    refused(tmp_path, r"images.txt has the image name 'v \(1\).png'.*binary files \(.bin\) instead, or rename")


def test_registered_images_are_needed(tmp_path):
    write_photos(tmp_path / "images")
    (write_colmap(tmp_path) / "images.txt").write_text("# none\n")
    refused(tmp_path, "has no image with a pose")


def test_impossible_cameras(tmp_path):
    write_photos(tmp_path / "images")
    for camera in (f"SIMPLE_PINHOLE {W} {H} 0 48 32", f"SIMPLE_PINHOLE {W} {H} -80 48 32", "SIMPLE_PINHOLE 0 0 80 0 0"):
        write_colmap(tmp_path, camera=camera)
        refused(tmp_path, "is impossible")


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((6, 15)),
        np.zeros((0, 17)),
        np.zeros((6, 17)),
        np.zeros((6, 17), "U3"),
        np.full((6, 17), np.nan),
        np.ones((5, 17)),
    ],
)
def test_bad_poses_bounds(tmp_path, rows):
    write_photos(tmp_path / "images")
    np.save(tmp_path / "poses_bounds.npy", rows)
    refused(tmp_path, "poses_bounds.npy")


@pytest.mark.parametrize("data", [b"", b"not numpy", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00v\x00{'descr': (((("])
def test_unreadable_poses_bounds(tmp_path, data):
    write_photos(tmp_path / "images")
    (tmp_path / "poses_bounds.npy").write_bytes(data)
    refused(tmp_path, "cannot read .*poses_bounds.npy")


@pytest.mark.parametrize("file_name", ["transforms.json", "transforms_train.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"frames": []}', '{"frames": [1]}', "[" * 100_000, b"\xff\xfe\x00"]
)
def test_unreadable_json(tmp_path, file_name, text):
    write_photos(tmp_path / "images")
    (tmp_path / file_name).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path, f"{file_name} (is not readable json|has no poses)")


TRANSPOSED = np.transpose(frame(0, "")["transform_matrix"]).tolist()


def test_json_with_a_byte_order_mark(tmp_path):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path)
    path = tmp_path / "transforms.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert load_scene(str(tmp_path)).names == NAMES


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fl_x": "long"}, "fl_x is 'long'"),
        ({"fl_x": None}, "fl_x is None"),
        ({"fl_x": 0}, "is impossible"),
        ({"k1": math.nan}, "k1 is nan"),
        ({"w": 0}, "is impossible"),
        ({"k4": 0.1}, "with k4 is not supported"),
        ({"camera_model": "EQUIRECTANGULAR"}, "is not supported"),
        ({"camera_model": ["OPENCV"]}, "is not supported"),
        ({"train_filenames": "all"}, "expected a list of file paths"),
        ({"train_filenames": ["images/v1.png"]}, "1 of 1 views are left for training"),
        ({"ply_file_path": 3}, "ply_file_path is 3"),
        ({"frames": [{"transform_matrix": np.eye(4).tolist()}]}, "file_path is None"),
        ({"frames": [{"file_path": "images/v0.png"}]}, "transform_matrix is no 4 x 4"),
        ({"frames": [{"file_path": "images/v0.png", "transform_matrix": [[1, 2], [3]]}]}, "transform_matrix is no"),
        ({"frames": [{**frame(0, "images/v0.png"), "transform_matrix": TRANSPOSED}]}, "has the last row"),
        ({"frames": [frame(0, "images/v0.png"), frame(1, "./images/v0.png")]}, "several frames have the same picture"),
    ],
)
def test_bad_nerfstudio_values(tmp_path, changes, match):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path, **changes)
    refused(tmp_path, match)


@pytest.mark.parametrize("angle", [0.0, 4.0, "wide", None, True])
def test_bad_camera_angle(tmp_path, angle):
    write_photos(tmp_path / "images")
    write_json(tmp_path / "transforms_train.json", {"camera_angle_x": angle, "frames": [frame(0, "images/v0")]})
    refused(tmp_path, "camera_angle_x is")


def test_no_focal_length(tmp_path):
    write_photos(tmp_path / "images")
    write_blender(tmp_path, w=W, h=H)
    refused(tmp_path, "fl_x is missing; expected fl_x .px. or camera_angle_x")


@pytest.fixture
def forbid(monkeypatch):
    """Lets a file or folder look as if this user may not read it: permissions do not stop root."""

    stat = os.stat

    def use(forbidden):
        def guarded(function):
            def call(path=".", *args, **kwargs):
                place = None if isinstance(path, int) else pathlib.Path(path)
                if place and (place.parent if function is stat else place) == forbidden:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return function(path, *args, **kwargs)

            return call

        for module, name in ((builtins, "open"), (io, "open"), (os, "listdir"), (os, "scandir"), (os, "stat")):
            monkeypatch.setattr(module, name, guarded(getattr(module, name)))

    return use


@pytest.mark.parametrize(
    ("writer", "path"),
    [
        ("colmap binary", "."),
        ("colmap binary", "sparse"),
        ("colmap binary", "sparse/0"),
        ("colmap binary", "sparse/0/images.bin"),
        ("colmap text", "sparse/0/cameras.txt"),
        ("colmap text", "images"),
        ("colmap text", "images/v2.png"),
        ("llff", "poses_bounds.npy"),
        ("blender", "transforms_test.json"),
        ("nerfstudio", "images"),
        ("nerfstudio", "images/v2.png"),
        ("nerfstudio", "transforms.json"),
        ("nerfstudio", "points.ply"),
    ],
)
def test_what_may_not_be_read(tmp_path, writer, path, forbid):
    root = tmp_path / "scene"
    write_photos(root / "images")
    WRITERS[writer](root)
    if path == "points.ply":
        write_nerfstudio(root, ply_file_path=path)
        (root / path).touch()
    forbid(root / path)
    refused(root, rf"cannot read {root / path}\S* \(Permission denied\): expected a scene whose files")


def test_pycolmap_stays_out_of_the_process_and_png_can_be_saved(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path, camera=f"SIMPLE_RADIAL {W} {H} 80 48 32 0.1")
    code = """
import sys
from bags_jax.data import load_scene
scene = load_scene(sys.argv[1])
assert "undistorted" in scene.notes[0]
assert "pycolmap" not in sys.modules
from PIL import Image
Image.fromarray(scene.images[0]).save(sys.argv[1] + "/saved.png")
"""
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "saved.png").is_file()
