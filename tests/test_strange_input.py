"""load_scene and numbers beyond float32, pipes, looping links, huge or disguised pictures, odd names: one line each."""

import json
import os
import struct
import time

import numpy as np
import pytest
from captures import (
    NAMES,
    WRITERS,
    H,
    W,
    assert_refused,
    make_frame,
    to_binary,
    write_colmap,
    write_llff,
    write_nerfstudio,
    write_photos,
)
from fuzz_cases import make_bomb
from fuzz_readers import check_scene
from PIL import Image

from bags_jax.config import default_config, read_config
from bags_jax.data import load_scene
from bags_jax.data.pairing import list_photos
from bags_jax.errors import UserError, show
from bags_jax.workdir import CAPTURE_FILE, check_capture

HUGE = 10**400


@pytest.fixture
def root(tmp_path):
    write_photos(tmp_path / "images")
    return tmp_path


# --- numbers that float32 does not hold


@pytest.mark.parametrize("value", [1e39, -1e300, 1e13, HUGE])
def test_positions_beyond_float32(root, value):
    frames = [make_frame(i, f"images/{name}") for i, name in enumerate(NAMES)]
    frames[2]["transform_matrix"][0][3] = value
    write_nerfstudio(root, frames=frames)
    expected = "transform_matrix is no 4 x 4 matrix" if value == HUGE else "the pose of view v2.png is not finite"
    assert_refused(root, expected)


@pytest.mark.parametrize("value", [1e39, 1e-320, 1e-46, 1e9, -80.0, HUGE])
@pytest.mark.parametrize("key", ["fl_x", "fl_y"])
def test_focal_lengths_beyond_reason(root, key, value):
    for k1 in (0.0, 0.01):  # a lens that distorts, too
        write_nerfstudio(root, k1=k1, **{key: value})
        assert_refused(root, "is impossible: expected positive sizes and focal lengths|expected a finite number")


@pytest.mark.parametrize("key", ["cx", "w", "h", "k1", "camera_angle_x"])
@pytest.mark.parametrize("value", [1e39, HUGE, -HUGE, 1e-320])
def test_other_numbers_of_a_lens(root, key, value):
    write_nerfstudio(root, **({"fl_x": 80.0, "fl_y": 80.0, key: value} if key != "camera_angle_x" else {}))
    if key == "camera_angle_x":
        values = json.loads((root / "transforms.json").read_text())
        del values["fl_x"], values["fl_y"]
        (root / "transforms.json").write_text(json.dumps({**values, key: value}))
    try:
        check_scene(load_scene(str(root)))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert value == 1e-320 and key in ("cx", "k1")


@pytest.mark.parametrize("camera", ["OPENCV 96 64 -80 80 48 32 0.1 0 0 0", "SIMPLE_RADIAL_FISHEYE 96 64 -80 48 32 0.1"])
def test_negative_focal_length_of_a_lens_that_distorts(root, camera):
    write_colmap(root, camera=camera)
    assert_refused(root, "is impossible")


def test_points_beyond_float32_are_left_out(root):
    folder = write_colmap(root)
    path = folder / "points3D.txt"
    lines = path.read_text().splitlines()
    for row, value in ((0, "1e39"), (1, "3e12"), (2, "-1e300")):
        words = lines[row].split()
        lines[row] = " ".join([words[0], value, *words[2:]])
    path.write_text("\n".join(lines) + "\n")
    scene = load_scene(str(root))
    assert len(scene.points) == 1 and "3 of 4 points are not finite or too far away, left out" in scene.notes
    check_scene(scene)


@pytest.mark.parametrize("near, far", [(1e39, 1e40), (1e-320, 1.0), (1.0, 1e39)])
def test_depth_bounds_beyond_float32_are_ignored(root, near, far):
    write_llff(root)
    rows = np.load(root / "poses_bounds.npy")
    rows[1, 15:] = near, far
    np.save(root / "poses_bounds.npy", rows)
    scene = load_scene(str(root))
    assert scene.depths is None
    check_scene(scene)


@pytest.mark.parametrize("column", [4, 9, 14])
@pytest.mark.parametrize("value", [1e39, 1e300, -1.0])
def test_sizes_of_llff_beyond_reason(root, column, value):
    write_llff(root)
    rows = np.load(root / "poses_bounds.npy")
    rows[1, column] = value
    np.save(root / "poses_bounds.npy", rows)
    assert_refused(root, "that is no size in px")


def test_binary_pose_beyond_float32(root):
    folder = to_binary(write_colmap(root))
    for name in ("frames.bin", "rigs.bin"):  # which would hold the poses
        (folder / name).unlink(missing_ok=True)
    data = bytearray((folder / "images.bin").read_bytes())
    struct.pack_into("<d", data, data.index(b"v2.png") - 64 + 4 + 32, 1e39)
    (folder / "images.bin").write_bytes(data)
    assert_refused(root, "the pose of view v2.png is not finite")


# --- whole numbers of 400 digits


def test_whole_numbers_of_400_digits(root, tmp_path):
    write_nerfstudio(root)
    assert list(load_scene(str(root), holdout=HUGE).test_ids) == [0]
    (root / f"hold={'9' * 240}").touch()
    assert_refused(root, "expected one file named hold=N with N >= 2")
    for name in ("seed", "num_steps", "max_gaussians"):
        config = default_config().to_dict() | {name: HUGE}
        with pytest.raises(UserError, match=f"config.{name} is 1000.*expected a whole number") as caught:
            read_config(config)
        assert len(str(caught.value)) < 200
    config = default_config().to_dict()
    for group, name in (("stages", "scales"), ("init", "opacity"), ("data", "holdout")):
        with pytest.raises(UserError, match="expected"):
            read_config(config | {group: config[group] | {name: HUGE}})
    (tmp_path / CAPTURE_FILE).write_text(json.dumps({"0.png": [HUGE] * 16}))
    with pytest.raises(UserError, match="cannot be read"):
        check_capture(tmp_path, {"0.png": np.eye(4)})


def test_values_are_shown_in_short():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in (HUGE, 10**5000, deep, "a\nb" * 100):
        assert len(show(value)) < 70 and "\n" not in show(value)


# --- the file system


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("writer", ["colmap text", "llff"])
def test_pipes_and_devices_among_the_photographs(root, kind, writer):
    WRITERS[writer](root)
    path = root / "images" / "v9.png"
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")
    assert_refused(root, "v9.png is a pipe, a device or a socket: expected a picture; remove it")


@pytest.mark.parametrize("file_name", ["points3D.txt", "images.txt"])
def test_pipes_and_devices_in_a_model(root, file_name):
    path = write_colmap(root) / file_name
    path.unlink()
    path.symlink_to("/dev/zero")
    assert_refused(root, f"{file_name} is (no file|missing)")


def test_links_that_loop(root):
    for name in "abcdef":
        (root / "images" / name).symlink_to(".")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "x.png").write_bytes((root / "images" / "v0.png").read_bytes())
    for name in ("left", "right"):
        (root / "images" / name).symlink_to(root / "elsewhere")
    start = time.monotonic()
    assert list(list_photos(root / "images")) == ["left/x.png", *NAMES]  # each real folder once
    assert time.monotonic() - start < 2
    (root / "images" / "self.png").symlink_to("self.png")
    write_nerfstudio(root)
    load_scene(str(root))  # nerfstudio's files name their pictures
    with pytest.raises(UserError, match="self.png"):
        write_llff(root)
        load_scene(str(root), format="llff")


@pytest.mark.parametrize("name", ["new\nline.png", "\x1b[31m.png", "\udcff\udcfe.png"])
def test_odd_names_stay_in_one_line(root, name):
    os.rename(root / "images" / "v1.png", root / "images" / name)
    write_colmap(root)
    try:
        scene = load_scene(str(root))
        assert all(note.isprintable() for note in scene.notes)
    except UserError as error:
        assert str(error).isprintable() and "is no UTF-8" in str(error)


# --- pictures


def test_huge_picture_is_compared_with_its_camera_before_it_is_decoded(root):
    write_colmap(root)
    (root / "images" / "v2.png").write_bytes(make_bomb(20_000, 20_000))
    start = time.monotonic()
    assert_refused(root, f"photograph v2.png is 20000 x 20000 but its camera {W} x {H}")
    assert time.monotonic() - start < 5
    (root / "images" / "v2.png").write_bytes(make_bomb(30_000, 20_000))
    assert_refused(root, "v2.png is 30000 x 20000: expected at most 536 million pixels")


def test_pictures_of_other_formats_are_refused_whatever_their_suffix(root):
    write_colmap(root)
    path = root / "images" / "v2.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\nshowpage\n")
    assert_refused(root, "cannot read .*v2.png as a picture .*it is none of PNG, JPEG, TIFF, WEBP, BMP")
    Image.new("RGB", (W, H)).save(path, "GIF")
    assert_refused(root, "it is none of PNG")
    for format in ("JPEG", "TIFF", "WEBP", "BMP"):  # these are read, whatever the suffix
        Image.new("RGB", (W, H)).save(path, format)
        assert load_scene(str(root)).images[2].shape == (H, W, 3)
