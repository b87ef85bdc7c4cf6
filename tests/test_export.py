import dataclasses
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from bags_jax import geometry
from bags_jax.errors import UserError
from bags_jax.export import video
from bags_jax.export.ply import bake_filter, read_ply, write_ply
from bags_jax.export.video import write_video
from bags_jax.structs import Gaussians

PLAYBOT = pathlib.Path(__file__).parents[2] / "shared" / "data" / "playbot_sh2.ply"
FIELDS = ("means", "quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest")


def cloud(num: int = 7, degree: int = 3) -> Gaussians:
    rng = np.random.default_rng(degree)
    shapes = {
        "means": (num, 3),
        "quats": (num, 4),
        "log_scales": (num, 3),
        "logit_opacities": (num,),
        "sh_dc": (num, 1, 3),
    }
    shapes["sh_rest"] = (num, (degree + 1) ** 2 - 1, 3)
    return Gaussians(**{name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()})


def assert_same(ours: Gaussians, theirs: Gaussians) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("num", [0, 1, 7])
def test_round_trip_is_exact(tmp_path, num, degree):
    gaussians = cloud(num, degree)
    write_ply(tmp_path / "new" / "cloud.ply", gaussians, None)
    assert_same(read_ply(tmp_path / "new" / "cloud.ply"), gaussians)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cloud.ply"]


def test_header_and_layout_of_the_bytes(tmp_path):
    gaussians = cloud(2, 1)
    write_ply(tmp_path / "a.ply", gaussians)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:4] == ["ply", "format binary_little_endian 1.0", "comment SplatRenderMode: mip", "element vertex 2"]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(9))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert lines[4:] == [f"property float {name}" for name in names]
    row = dict(zip(names, np.frombuffer(body, "<f4").reshape(2, -1)[1]))
    assert row["nx"] == row["ny"] == row["nz"] == 0.0
    assert row["f_rest_1"] == gaussians.sh_rest[1, 1, 0]  # channel-major: red's second coefficient
    assert row["f_rest_3"] == gaussians.sh_rest[1, 0, 1]  # green's first
    assert row["rot_0"] == gaussians.quats[1, 0] and row["opacity"] == gaussians.logit_opacities[1]


def test_baked_filter_by_hand(tmp_path):
    # s = (3, 3, 3), f = 4: s' = 5, o' = o (3 / 5)^3. s = (0.3, 4, 4), f = 0: no change.
    gaussians = dataclasses.replace(
        cloud(2, 0),
        log_scales=jnp.log(jnp.asarray([[3.0, 3.0, 3.0], [0.3, 4.0, 4.0]])),
        logit_opacities=jnp.asarray([0.0, 12.0]),
    )
    write_ply(tmp_path / "a.ply", gaussians, jnp.asarray([4.0, 0.0]))
    baked = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(np.exp(baked.log_scales), [[5, 5, 5], [0.3, 4, 4]], rtol=1e-6)
    opacity = 0.5 * 0.6**3
    np.testing.assert_allclose(baked.logit_opacities, [np.log(opacity / (1 - opacity)), 12.0], rtol=1e-6)


def test_baked_filter_agrees_with_the_renderers_and_survives_extremes():
    gaussians, filter_3d = cloud(50), jnp.linspace(0.0, 2.0, 50)
    opacities = 1 / (1 + jnp.exp(-gaussians.logit_opacities))
    scales, opacities = geometry.apply_filter_3d(jnp.exp(gaussians.log_scales), opacities, filter_3d)
    baked = bake_filter(gaussians, filter_3d)
    np.testing.assert_allclose(np.exp(baked.log_scales), scales, rtol=1e-5)
    np.testing.assert_allclose(1 / (1 + np.exp(-baked.logit_opacities)), opacities, rtol=1e-5)
    extreme = dataclasses.replace(
        gaussians, log_scales=jnp.full((50, 3), -60.0), logit_opacities=jnp.linspace(-80.0, 80.0, 50)
    )
    for filters in (filter_3d, jnp.full((50,), 1e-30)):
        baked = bake_filter(extreme, filters)
        assert np.all(np.isfinite(baked.log_scales)) and np.all(np.isfinite(baked.logit_opacities))


def test_independent_reader_sees_the_same(tmp_path):
    gaussians = cloud(11, 3)
    write_ply(tmp_path / "a.ply", gaussians)
    vertices = trimesh.load(tmp_path / "a.ply").metadata["_ply_raw"]["vertex"]
    assert vertices["length"] == 11
    data = vertices["data"]
    np.testing.assert_array_equal(np.stack([data["x"], data["y"], data["z"]], axis=1).reshape(11, 3), gaussians.means)
    np.testing.assert_array_equal(data["opacity"].ravel(), gaussians.logit_opacities)
    for channel in range(3):
        np.testing.assert_array_equal(data[f"f_dc_{channel}"].ravel(), gaussians.sh_dc[:, 0, channel])
        np.testing.assert_array_equal(data[f"f_rest_{15 * channel + 4}"].ravel(), gaussians.sh_rest[:, 4, channel])


@pytest.mark.skipif(not PLAYBOT.is_file(), reason="no shared data")
def test_a_splat_of_another_program_round_trips(tmp_path):
    gaussians = read_ply(PLAYBOT)
    assert gaussians.means.shape == (31000, 3) and gaussians.sh_rest.shape == (31000, 8, 3)
    data = trimesh.load(PLAYBOT).metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(gaussians.sh_rest[:, 2, 1], data["f_rest_10"].ravel())
    write_ply(tmp_path / "again.ply", gaussians)
    assert_same(read_ply(tmp_path / "again.ply"), gaussians)


def test_a_filter_column_is_baked_in_on_reading(tmp_path):
    gaussians = cloud(3, 0)
    write_ply(tmp_path / "a.ply", gaussians)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    rows = np.concatenate([np.frombuffer(body, "<f4").reshape(3, -1), [[0.5], [1.0], [0.0]]], axis=1).astype("<f4")
    (tmp_path / "b.ply").write_bytes(header + b"property float filter_3D\nend_header\n" + rows.tobytes())
    assert_same(read_ply(tmp_path / "b.ply"), bake_filter(gaussians, jnp.asarray([0.5, 1.0, 0.0])))


def corrupt(data: bytes, fault: str) -> bytes:
    match fault:
        case "cut short":
            return data[:-1]
        case "inside its header":
            return data[:90]
        case "does not start with 'ply'":
            return b"\x89PNG" + data
        case "NaN or infinity":
            return data[:-4] + np.float32(np.nan).tobytes()
        case "has format ascii":
            return data.replace(b"binary_little_endian", b"ascii")
        case "has format none":
            return data.replace(b"format binary_little_endian 1.0\n", b"")
        case "lacks opacity":
            return data.replace(b"property float opacity", b"property float opacitx")
        case "unknown header line":
            return data.replace(b"property float opacity", b"property list uchar int opacity")
        case "twice":
            return data.replace(b"property float nx", b"property float ny")
        case "f_rest properties":
            return data.replace(b"property float f_rest_8\n", b"property float other\n")
        case "belong to no degree":
            return (
                data.replace(b"float f_rest_6", b"float a")
                .replace(b"float f_rest_7", b"float b")
                .replace(b"float f_rest_8", b"float c")
            )
        case "starts with element 'chunk'":
            return data.replace(b"element vertex", b"element chunk 0\nproperty float min_x\nelement vertex")
        case "need 444444444444":
            return data.replace(b"element vertex 4", b"element vertex 4444444444")
    raise AssertionError(fault)


FAULTS = [
    "cut short",
    "inside its header",
    "does not start with 'ply'",
    "NaN or infinity",
    "has format ascii",
    "has format none",
]
FAULTS += ["lacks opacity", "unknown header line", "twice", "f_rest properties", "belong to no degree"]
FAULTS += ["starts with element 'chunk'"]


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_files_raise_errors(tmp_path, fault):
    path = tmp_path / "a.ply"
    write_ply(path, cloud(4, 1))
    path.write_bytes(corrupt(path.read_bytes(), fault))
    with pytest.raises(UserError, match=fault) as caught:
        read_ply(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_header_that_declares_terabytes_is_refused_at_once(tmp_path):
    path = tmp_path / "a.ply"
    write_ply(path, cloud(4, 1))
    path.write_bytes(corrupt(path.read_bytes(), "need 444444444444"))
    with pytest.raises(UserError, match="cut short"):
        read_ply(path)


def test_any_prefix_of_a_file_is_refused(tmp_path):
    write_ply(tmp_path / "a.ply", cloud(1, 0))
    data = (tmp_path / "a.ply").read_bytes()
    for length in range(len(data)):
        (tmp_path / "b.ply").write_bytes(data[:length])
        with pytest.raises(UserError):
            read_ply(tmp_path / "b.ply")


def test_invalid_gaussians_raise_errors_and_leave_no_file(tmp_path):
    gaussians = cloud(3)
    with pytest.raises(UserError, match="1 of 3 Gaussians"):
        write_ply(tmp_path / "a.ply", dataclasses.replace(gaussians, means=gaussians.means.at[1, 0].set(jnp.nan)))
    for filters in ([1.0, 2.0], [1.0, -1.0, 0.0], [1.0, np.nan, 0.0]):
        with pytest.raises(UserError, match="filter_3d"):
            write_ply(tmp_path / "a.ply", gaussians, np.asarray(filters))
    with pytest.raises(UserError, match="no degree"):
        write_ply(tmp_path / "a.ply", dataclasses.replace(gaussians, sh_rest=gaussians.sh_rest[:, :7]))
    assert list(tmp_path.iterdir()) == []


def test_invalid_paths_raise_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder that can be written"):
        write_ply(tmp_path / "file" / "a.ply", cloud())
    with pytest.raises(UserError, match="cannot read"):
        read_ply(tmp_path / "absent.ply")
    with pytest.raises(UserError, match="cannot read"):
        read_ply(tmp_path)


@pytest.mark.parametrize("codec", ["avc1", "vp09"])
def test_video_has_its_frames_even_sides_and_colours(tmp_path, monkeypatch, codec):
    cv2 = pytest.importorskip("cv2")
    if codec == "vp09":
        monkeypatch.setattr(video.shutil, "which", lambda name: None)
    elif not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg")
    frames = np.zeros((9, 45, 63, 3), np.uint8)
    frames[:] = (200, 90, 40)
    for i in range(9):
        frames[i, :, 6 * i : 6 * i + 10] = (20, 60, 220)
    said = write_video(tmp_path / "new" / "a.mp4", frames, fps=24.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]
    data = (tmp_path / "new" / "a.mp4").read_bytes()
    assert codec.encode() in data and said.startswith("H.264" if codec == "avc1" else "VP9 by OpenCV, because")
    if codec == "avc1":
        assert data.index(b"moov") < data.index(b"mdat")  # the index is in front: a browser plays at once
    reader = cv2.VideoCapture(str(tmp_path / "new" / "a.mp4"))
    assert reader.get(cv2.CAP_PROP_FPS) == 24
    seen = [frame[..., ::-1] for ok, frame in iter(reader.read, (False, None)) if ok]
    assert len(seen) == 9 and seen[0].shape == (46, 64, 3)
    for i in (0, 8):
        np.testing.assert_allclose(seen[i][20, 6 * i + 5], (20, 60, 220), atol=20)  # 4:2:0 and a lossy codec
        np.testing.assert_allclose(seen[i][20, (6 * i + 35) % 60], (200, 90, 40), atol=20)


@pytest.mark.parametrize("script, codec", [("exit 1", "VP9"), ("echo ' V libx264 '; exit 1", None)])
def test_an_ffmpeg_that_fails_is_passed_over_or_named(tmp_path, monkeypatch, script, codec):
    pytest.importorskip("cv2")
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    frames, path = np.zeros((3, 400, 400, 3), np.uint8), tmp_path / "new" / "a.mp4"
    if codec:
        assert write_video(path, frames).startswith(codec)
        return
    with pytest.raises(UserError, match="ffmpeg wrote no film") as caught:
        write_video(path, frames)
    assert "\n" not in str(caught.value) and not list(path.parent.iterdir())


@pytest.mark.parametrize(
    "name, frames, fps, says",
    [
        ("a.avi", np.zeros((2, 4, 4, 3), np.uint8), 30, "ends in .mp4"),
        ("a.mp4", np.zeros((0, 4, 4, 3), np.uint8), 30, "at least one frame"),
        ("a.mp4", np.zeros((2, 4, 4, 3)), 30, "expected uint8"),
        ("a.mp4", np.zeros((2, 4, 4, 3), np.uint8), 0, "fps is 0"),
        ("file/a.mp4", np.zeros((2, 4, 4, 3), np.uint8), 30, "expected a folder that can be written"),
    ],
)
def test_invalid_videos_raise_errors(tmp_path, name, frames, fps, says):
    (tmp_path / "file").write_text("")
    write = getattr(write_video, "__wrapped__", write_video)  # without the shape checks that only tests install
    with pytest.raises(UserError, match=says):
        write(tmp_path / name, frames, fps=fps)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
