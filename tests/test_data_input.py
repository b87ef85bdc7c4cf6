"""load_scene: the points of PLY files, and bad input."""

import builtins
import dataclasses
import errno
import io
import json
import math
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from captures import (
    COLORS,
    NAMES,
    POINTS,
    WRITERS,
    H,
    W,
    assert_refused,
    expect_pixels,
    make_frame,
    project,
    to_binary,
    write_blender,
    write_colmap,
    write_json,
    write_llff,
    write_nerfstudio,
    write_photos,
)

from bags_jax.data import formats, load_scene
from bags_jax.data.formats import FORMATS
from bags_jax.data.lens import Lens, undistort
from bags_jax.data.nerfstudio import read_ply_points
from bags_jax.errors import UserError


def test_nerfstudio_lens_of_each_frame(tmp_path):
    write_photos(tmp_path / "images")
    frames = [{**make_frame(i, f"images/{name}"), "fl_x": 70.0 + i} for i, name in enumerate(NAMES)]
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
    np.testing.assert_allclose(project(scene), expect_pixels(), atol=1e-3)
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


# --- bad input


@pytest.mark.parametrize("field, counts", [("lenses", "6 viewmats, 5 lenses"), ("viewmats", "5 viewmats, 6 lenses")])
def test_reader_that_forgets_an_entry(tmp_path, monkeypatch, field, counts):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    (colmap,) = (format for format in FORMATS if format.name == "colmap")
    capture = colmap.read(tmp_path, factor=1)
    short = dataclasses.replace(capture, **{field: getattr(capture, field)[1:]})
    monkeypatch.setattr(formats, "FORMATS", (dataclasses.replace(colmap, read=lambda root, *, factor: short),))
    assert_refused(tmp_path, f"the reader of format colmap returned 6 names, 6 files, {counts}")


def test_unknown_lens():
    image = np.zeros((64, 96, 3), np.uint8)
    for model, params, expected in (
        ("SIMPLE_PINHOL", (80.0, 48.0, 32.0), "expected a model of COLMAP: SIMPLE_PINHOLE, PINHOLE"),
        ("OPENCV", (80.0, 48.0, 32.0), "expected the parameters fx, fy, cx, cy, k1, k2, p1, p2"),
    ):
        with pytest.raises(UserError, match=expected):
            undistort(image, Lens(model, 96, 64, params))


def test_bad_folders(tmp_path):
    assert_refused(tmp_path / "nowhere", "does not exist")
    assert_refused(tmp_path, "is empty")
    (tmp_path / "file").touch()
    assert_refused(tmp_path / "file", "is a file")


def test_bad_options(tmp_path):
    write_photos(tmp_path / "images")
    message = assert_refused(tmp_path, "holds 6 photographs but no camera poses")
    assert all(f"{format.marker} ({format.name})" in message for format in FORMATS)
    assert f"bags-jax sfm --root={tmp_path}" in message
    assert_refused(tmp_path, "format 'splat' is unknown", format="splat")
    assert_refused(tmp_path, "has no COLMAP model", format="colmap")
    assert_refused(tmp_path, "transforms_train.json is missing", format="blender")
    assert_refused(tmp_path, "transforms.json is missing", format="nerfstudio")
    assert_refused(tmp_path, "poses_bounds.npy is missing", format="llff")
    assert_refused(tmp_path, "factor is 0", factor=0)
    assert_refused(tmp_path, "background is", background=(0.0, 0.0, 255.0))
    write_nerfstudio(tmp_path)
    assert_refused(tmp_path, "leaves no pixel", factor=1000)


@pytest.mark.parametrize("writer", WRITERS)
def test_poses_without_photographs(tmp_path, writer):
    WRITERS[writer](tmp_path)
    assert_refused(tmp_path, "has camera poses but no")
    (tmp_path / "images").mkdir()
    assert_refused(tmp_path, "has camera poses but no")


def test_photographs_of_another_scene(tmp_path):
    write_photos(tmp_path / "images", names=[f"other{i}.png" for i in range(6)])
    write_colmap(tmp_path)
    assert_refused(tmp_path, "none of the 6 images of")


@pytest.mark.parametrize("data", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n" + bytes(50), "half"])
def test_file_that_is_no_picture(tmp_path, data):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    path = tmp_path / "images" / NAMES[2]
    path.write_bytes(path.read_bytes()[:300] if data == "half" else data)
    assert_refused(tmp_path, f"cannot read .*{NAMES[2]} as a picture")


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
    assert_refused(tmp_path, "the pose of view v2.png is no")


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
    assert_refused(tmp_path, "is damaged")


@pytest.mark.parametrize("file_name", ["cameras.txt", "images.txt", "points3D.txt"])
def test_damaged_text_model(tmp_path, file_name):
    write_photos(tmp_path / "images")
    path = write_colmap(tmp_path) / file_name
    good = path.read_text()
    for damaged in ("@#$ nonsense\n", good.replace("1 ", "one ", 1), good[: good.rindex(" ") - 8] + "x"):
        path.write_text(damaged)
        assert_refused(tmp_path, "is damaged")
    path.unlink()
    if file_name != "points3D.txt":
        assert_refused(tmp_path, f"{file_name} is missing")


@pytest.mark.parametrize("binary", [True, False])
def test_model_without_points_file(tmp_path, binary):
    write_photos(tmp_path / "images")
    folder = write_colmap(tmp_path)
    path = to_binary(folder) / "points3D.bin" if binary else folder / "points3D.txt"
    path.unlink()
    scene = load_scene(str(tmp_path))
    assert scene.names == NAMES and scene.points.shape == (0, 3)
    assert scene.notes == (f"{path} is missing: training starts without points",)


@pytest.mark.parametrize("binary", [True, False])
def test_quaternion_of_length_0(tmp_path, binary):
    write_photos(tmp_path / "images")
    folder = write_colmap(tmp_path)
    lines = (folder / "images.txt").read_text().splitlines()
    lines[5] = "3 0 0 0 0 0 0 3 1 v2.png"
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    if binary:
        to_binary(folder)
    assert_refused(tmp_path, r"quaternion 0 0 0 0 \(v2.png\)")


def test_two_images_of_one_name(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path, names=("v0.png", "v1.png", "v2.png", "v1.png", "v4.png", "v5.png"))
    assert_refused(tmp_path, r"several images of one name \(v1.png\)")


def test_text_model_with_spaces_in_names(tmp_path):
    names = [f"v ({i}).png" for i in range(6)]
    write_photos(tmp_path / "images", names=names)
    write_colmap(tmp_path, names=["v0.png", *names[1:]])
    assert_refused(tmp_path, r"images.txt has the image name 'v \(1\).png'.*binary files \(.bin\) instead, or rename")


def test_registered_images_are_needed(tmp_path):
    write_photos(tmp_path / "images")
    (write_colmap(tmp_path) / "images.txt").write_text("# none\n")
    assert_refused(tmp_path, "has no image with a pose")


def test_impossible_cameras(tmp_path):
    write_photos(tmp_path / "images")
    for camera in (f"SIMPLE_PINHOLE {W} {H} 0 48 32", f"SIMPLE_PINHOLE {W} {H} -80 48 32", "SIMPLE_PINHOLE 0 0 80 0 0"):
        write_colmap(tmp_path, camera=camera)
        assert_refused(tmp_path, "is impossible")


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
    assert_refused(tmp_path, "poses_bounds.npy")


@pytest.mark.parametrize("data", [b"", b"not numpy", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00v\x00{'descr': (((("])
def test_unreadable_poses_bounds(tmp_path, data):
    write_photos(tmp_path / "images")
    (tmp_path / "poses_bounds.npy").write_bytes(data)
    assert_refused(tmp_path, "cannot read .*poses_bounds.npy")


@pytest.mark.parametrize("file_name", ["transforms.json", "transforms_train.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"frames": []}', '{"frames": [1]}', "[" * 100_000, b"\xff\xfe\x00"]
)
def test_unreadable_json(tmp_path, file_name, text):
    write_photos(tmp_path / "images")
    (tmp_path / file_name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(tmp_path, f"{file_name} (is not readable json|has no poses)")


TRANSPOSED = np.transpose(make_frame(0, "")["transform_matrix"]).tolist()


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
        ({"frames": [{**make_frame(0, "images/v0.png"), "transform_matrix": TRANSPOSED}]}, "has the last row"),
        (
            {"frames": [make_frame(0, "images/v0.png"), make_frame(1, "./images/v0.png")]},
            "several frames have the same picture",
        ),
    ],
)
def test_bad_nerfstudio_values(tmp_path, changes, match):
    write_photos(tmp_path / "images")
    write_nerfstudio(tmp_path, **changes)
    assert_refused(tmp_path, match)


@pytest.mark.parametrize("angle", [0.0, 4.0, "wide", None, True])
def test_bad_camera_angle(tmp_path, angle):
    write_photos(tmp_path / "images")
    write_json(tmp_path / "transforms_train.json", {"camera_angle_x": angle, "frames": [make_frame(0, "images/v0")]})
    assert_refused(tmp_path, "camera_angle_x is")


def test_no_focal_length(tmp_path):
    write_photos(tmp_path / "images")
    write_blender(tmp_path, w=W, h=H)
    assert_refused(tmp_path, "fl_x is missing; expected fl_x .px. or camera_angle_x")


@pytest.fixture
def forbid(monkeypatch):
    """Makes a file or folder unreadable by patching the file functions, because permissions do not stop root."""

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
def test_unreadable_file_or_folder(tmp_path, writer, path, forbid):
    root = tmp_path / "scene"
    write_photos(root / "images")
    WRITERS[writer](root)
    if path == "points.ply":
        write_nerfstudio(root, ply_file_path=path)
        (root / path).touch()
    forbid(root / path)
    assert_refused(root, rf"cannot read {root / path}\S* \(Permission denied\): expected a scene whose files")


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
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "saved.png").is_file()
