"""Tests exported files: upright, read back, in every format; and the messages where that is not possible."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import trimesh

from bags_jax.checkpoint import Checkpoints
from bags_jax.config import load_config, read_config
from bags_jax.data.poses import make_rigid
from bags_jax.errors import UserError
from bags_jax.export import splat_transform
from bags_jax.export.glb import read_glb, write_glb
from bags_jax.export.ply import read_ply
from bags_jax.export.splat import export, read_back, read_splat, render_splat, write_viewer_settings
from bags_jax.job import first_state, make_job, training_cameras
from bags_jax.upright import read_up
from bags_jax.workdir import claim_capture, claim_workdir

WIDTH, HEIGHT = 96, 72
K = np.array([[90.0, 0, WIDTH / 2], [0, 90, HEIGHT / 2], [0, 0, 1]])


def has_splat_transform() -> bool:
    try:
        splat_transform.find_command()
    except UserError:
        return False
    return True


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that was stopped before its first step."""
    settings = read_config(load_config("procedural:motion,smoke"))
    job = make_job(settings)
    folder = claim_workdir(tmp_path_factory.mktemp("run"), settings)
    claim_capture(folder, training_cameras(job.scene))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(first_state(job))
    return folder


def render(gaussians, viewmat):
    return render_splat(gaussians, viewmat, K, width=WIDTH, height=HEIGHT)


@pytest.mark.parametrize("suffix, up", [(".ply", [0, -1, 0]), (".glb", [0, 1, 0])])
def test_a_file_stands_upright_and_shows_the_same(workdir, tmp_path, suffix, up):
    exported = export(workdir, tmp_path / f"scene{suffix}")
    world = export(workdir, tmp_path / "world.ply", keep_frame=True)
    assert exported.upright is not None and exported.start is not None and world.start is not None
    assert exported.upright.direction[2] > 0.999  # z is up in the embedded worlds
    np.testing.assert_allclose(exported.start.up, up, atol=1e-9)
    ahead = exported.start.target - exported.start.position  # level: along the view axis of the format
    assert abs(ahead[0]) < 1e-6 * np.linalg.norm(ahead) and ahead[2] * (1 if suffix == ".ply" else -1) > 0
    before = render(read_ply(world.path), world.start.viewmat())
    after = render(read_splat(exported.path), exported.start.viewmat())
    assert before.std() > 0.05
    np.testing.assert_allclose(after, before, atol=2e-4)  # quaternions are rounded once more
    turned = world.start.viewmat() @ make_rigid(exported.rotation.T, np.zeros(3))
    np.testing.assert_allclose(turned, exported.start.viewmat(), atol=1e-6)
    assert "100.0 dB" in read_back(exported) and str(len(exported.gaussians.means)) in read_back(exported)


def test_the_world_frame_is_kept_and_the_up_direction_can_be_given(workdir, tmp_path):
    kept = export(workdir, tmp_path / "a.ply", keep_frame=True)
    np.testing.assert_array_equal(kept.rotation, np.eye(3))
    assert kept.upright is None
    given = export(workdir, tmp_path / "b.ply", up=read_up("x"))
    np.testing.assert_allclose(given.rotation @ [1, 0, 0], [0, -1, 0], atol=1e-9)


def test_viewers_start_before_the_subject(workdir, tmp_path):
    exported = export(workdir, tmp_path / "scene.ply")
    assert exported.start is not None
    settings = json.loads(write_viewer_settings(exported, workdir).read_text())
    (camera,) = settings["cameras"]
    position, target = (np.array(camera["initial"][name]) for name in ("position", "target"))
    np.testing.assert_allclose(position, exported.start.position * [-1, -1, 1])
    means = np.asarray(exported.gaussians.means) * [-1, -1, 1]
    ahead = (target - position) / np.linalg.norm(target - position)
    assert np.mean((means - position) @ ahead > 0) > 0.9  # the scene lies ahead, the target in its middle
    low, high = np.percentile((means - position) @ ahead, (10, 90))
    assert low < np.linalg.norm(target - position) < high
    assert 30 < camera["initial"]["fov"] < 90 and settings["startMode"] == "animTrack"
    (track,) = settings["animTracks"]
    np.testing.assert_allclose(track["keyframes"]["values"]["position"][:3], position)
    glb = export(workdir, tmp_path / "scene.glb")
    assert glb.start is not None
    position = json.loads(write_viewer_settings(glb, workdir).read_text())["cameras"][0]["initial"]["position"]
    np.testing.assert_allclose(position, glb.start.position)


def test_refined_poses_are_used_and_a_missing_capture_is_no_obstacle(workdir, tmp_path):
    moved = shutil.copytree(workdir, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    config["data"] |= {"format": "auto", "root": "/nowhere"}
    (moved / "config.json").write_text(json.dumps(config))
    alone = export(moved, tmp_path / "a.ply")
    assert alone.start is not None and alone.start.fov_deg[1] == 50.0
    poses = {name: {"cam_from_world": np.eye(4).tolist(), "K": K.tolist()} for name in "ab"}
    (moved / "poses.json").write_text(json.dumps(poses))
    refined = export(moved, tmp_path / "a.ply")
    assert refined.start is not None and refined.upright is not None
    assert refined.upright.direction[1] < -0.8  # up in these pictures
    np.testing.assert_allclose(refined.start.fov_deg[1], 2 * np.degrees(np.arctan(36 / 90)))
    (moved / "poses.json").unlink()
    (moved / "capture.json").unlink()
    with pytest.raises(UserError, match="--upright=False"):
        export(moved, tmp_path / "b.ply")
    exported = export(moved, tmp_path / "b.ply", keep_frame=True)
    assert exported.start is None and "dB" not in read_back(exported)
    with pytest.raises(UserError, match="viewer_settings"):
        write_viewer_settings(exported, moved)


# --- GLB -------------------------------------------------------------------------------------------------------------


def test_glb_follows_the_specification(workdir, tmp_path):
    gaussians = export(workdir, tmp_path / "scene.glb").gaussians
    data = (tmp_path / "scene.glb").read_bytes()
    size = int.from_bytes(data[12:16], "little")
    document = json.loads(data[20 : 20 + size])
    assert data[:4] == b"glTF" and size % 4 == 0 and document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    (primitive,) = document["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"] == {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "projection": "perspective",
        "sortingMethod": "cameraDistance",
    }
    values = {}
    for name, index in primitive["attributes"].items():
        accessor = document["accessors"][index]
        view = document["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
        start = 28 + size + view["byteOffset"]
        values[name] = np.frombuffer(data[start : start + view["byteLength"]], kind).reshape(accessor["count"], -1)
    quats, scales = values["KHR_gaussian_splatting:ROTATION"], values["KHR_gaussian_splatting:SCALE"]
    np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1, atol=1e-6)
    wxyz = np.asarray(gaussians.quats)
    expected = wxyz / np.linalg.norm(wxyz, axis=1, keepdims=True)
    np.testing.assert_allclose(quats[:, 3], expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(scales, np.exp(gaussians.log_scales), rtol=1e-5)
    opacities = values["KHR_gaussian_splatting:OPACITY"]
    np.testing.assert_allclose(opacities[:, 0], 1 / (1 + np.exp(-gaussians.logit_opacities)), rtol=1e-5)
    np.testing.assert_array_equal(values["KHR_gaussian_splatting:SH_DEGREE_0_COEF_0"], gaussians.sh_dc[:, 0])
    names = {name for name in primitive["attributes"] if "SH_DEGREE" in name}
    assert len(names) == 1 + gaussians.sh_rest.shape[1]
    np.testing.assert_allclose(document["accessors"][0]["min"], np.asarray(gaussians.means).min(axis=0))
    (points,) = trimesh.load(tmp_path / "scene.glb").geometry.values()  # an independent reader
    np.testing.assert_allclose(points.vertices, gaussians.means, rtol=1e-6)


@pytest.mark.parametrize("fault", ["cut", "magic", "empty", "no splats"])
def test_a_broken_glb_is_refused_in_one_line(workdir, tmp_path, fault):
    path = export(workdir, tmp_path / "scene.glb").path
    data = path.read_bytes()
    changed = {
        "cut": data[:-4],
        "magic": b"GLTF" + data[4:],
        "empty": b"",
        "no splats": data.replace(b":OPACITY", b":OPACITX"),
    }
    path.write_bytes(changed[fault])
    with pytest.raises(UserError, match="no GLB of Gaussians") as caught:
        read_glb(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read"):
        read_glb(tmp_path / "absent.glb")


def test_a_glb_of_broken_gaussians_is_not_written(workdir, tmp_path):
    gaussians = export(workdir, tmp_path / "a.ply").gaussians
    with pytest.raises(UserError, match="NaN"):
        write_glb(tmp_path / "b.glb", gaussians.replace(means=gaussians.means.at[0, 0].set(np.nan)))
    assert not (tmp_path / "b.glb").exists()


# --- formats of splat-transform --------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_splat_transform(), reason="no splat-transform")
@pytest.mark.parametrize("suffix, least", [(".spz", 40.0), (".sog", 40.0), (".html", 40.0)])
def test_formats_of_splat_transform_are_read_back(workdir, tmp_path, suffix, least):
    exported = export(workdir, tmp_path / f"scene{suffix}")
    found = read_back(exported)
    assert float(found.split(" dB")[0].split()[-1]) > least and str(len(exported.gaussians.means)) in found
    assert [path.name for path in tmp_path.iterdir()] == [f"scene{suffix}"]
    if suffix == ".spz":  # magic, version 4; flag 1: antialiased
        head = exported.path.read_bytes()[:15]
        assert head[:5] == b"NGSP\x04" and head[14] & 1


def install(folder: pathlib.Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A folder that is the only one with programs, and the current folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(splat_transform.sys, "executable", str(tmp_path / "python"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_missing_program_is_named_with_its_remedy(workdir, bare):
    path = bare / "scene.sog"
    with pytest.raises(UserError, match="Node.js is missing.*npm install"):
        export(workdir, path)
    install(bare, "node", "echo v20.19.1")
    with pytest.raises(UserError, match="is Node.js 20.19.1, expected Node.js 22 or newer: pip install"):
        export(workdir, path)
    install(bare, "node", "echo v22.1.0")
    with pytest.raises(UserError, match="splat-transform is missing.*npm install @playcanvas/splat-transform"):
        export(workdir, path)
    os.makedirs(bare / "node_modules" / ".bin")
    install(bare / "node_modules" / ".bin", "splat-transform", "")
    install(bare, "node", 'case "$*" in *splat-transform*) echo v2.3.4;; *) echo v22.1.0;; esac')
    with pytest.raises(UserError, match="no version 3 or newer"):
        export(workdir, path)
    install(bare, "node", 'case "$*" in *version*) echo v22.1.0;; *) echo out of memory; exit 3;; esac')
    path.write_text("earlier")
    with pytest.raises(UserError, match="did not write .*out of memory") as caught:
        export(workdir, path)
    assert "\n" not in str(caught.value) and path.read_text() == "earlier"
    assert sorted(p.name for p in bare.iterdir()) == ["node", "node_modules", "scene.sog"]


@pytest.mark.parametrize(
    "name, says", [("a.splat", "ends in .ply, .glb, .spz, .sog, .html"), ("new/a.glb", "no folder")]
)
def test_a_file_that_cannot_be_written_is_refused_first(tmp_path, name, says):
    with pytest.raises(UserError, match=says):
        export("/no/run", tmp_path / name)
    assert not list(tmp_path.iterdir())
