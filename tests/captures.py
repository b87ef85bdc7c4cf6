"""One synthetic rig of cameras, written in every scene format."""

import functools
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from bags_jax.data import load_scene
from bags_jax.errors import UserError

W, H, FOCAL = 96, 64, 80.0
NAMES = tuple(f"v{i}.png" for i in range(6))
POINTS = np.array([[0.8, 0.5, 0.1], [-0.9, -0.3, 0.0], [0.3, -0.6, 0.4], [-0.2, 0.5, -0.3]])
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [51, 102, 153]])


def make_rig():
    """Returns the camera centres and their right, down, forward axes [V, 3], free of any format's conventions."""
    angles = np.linspace(-0.5, 0.5, len(NAMES))
    centers = np.stack([3 * np.sin(angles), 0.4 * np.cos(3 * angles), -3 * np.cos(angles)], axis=-1)
    forward = np.array([0.1, 0.05, 0.0]) - centers
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(np.array([0.1, 1.0, 0.05]), forward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return centers, right, np.cross(forward, right), forward


CENTERS, RIGHT, DOWN, FORWARD = make_rig()


def expect_pixels(*, f=(FOCAL, FOCAL), c=(W / 2, H / 2), distort=lambda xy: xy):
    """Returns the pixel positions [V, P, 2] of POINTS, by dot products with the rig's axes."""
    offsets = POINTS[None] - CENTERS[:, None]
    x, y, z = (np.einsum("vpi,vi->vp", offsets, axis) for axis in (RIGHT, DOWN, FORWARD))
    return distort(np.stack([x / z, y / z], axis=-1)) * np.array(f) + np.array(c)


def project(scene, points=POINTS):
    """Returns the pixel positions [V, P, 2] of points, by the scene's matrices."""
    camera = points @ scene.viewmats[:, :3, :3].transpose(0, 2, 1) + scene.viewmats[:, None, :3, 3]
    pixels = camera @ scene.Ks.transpose(0, 2, 1)
    return pixels[..., :2] / pixels[..., 2:]


def draw(pixels, *, width=W, height=H, sigma=2.0):
    """Returns a dark picture with a soft spot at each of the first 3 positions, one in each channel."""
    y, x = np.mgrid[:height, :width] + 0.5
    picture = np.zeros((height, width, 3))
    for index, (u, v) in enumerate(pixels[:3]):
        picture[..., index] += 250 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
    return np.rint(picture).astype(np.uint8)


def find_spots(image):
    """Returns the centre [3, 2] of the spot in each channel, px."""
    weights = image.astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.stack([np.einsum("hwc,hw->c", weights, axis) for axis in (x, y)], -1) / weights.sum((0, 1))[:, None]


def write_photos(folder, pixels=None, *, width=W, height=H, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, view in zip(names, expect_pixels() if pixels is None else pixels):
        Image.fromarray(draw(view, width=width, height=height)).save(folder / name)


def write_colmap(root, *, names=NAMES, camera=f"SIMPLE_PINHOLE {W} {H} {FOCAL} {W / 2} {H / 2}", model="sparse/0"):
    folder = root / model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"# Cameras\n1 {camera}\n")
    lines = ["# Images"]
    for i, name in enumerate(names):
        rotation = np.stack([RIGHT[i], DOWN[i], FORWARD[i]])
        qx, qy, qz, qw = Rotation.from_matrix(rotation).as_quat()
        pose = (qw, qx, qy, qz, *(-rotation @ CENTERS[i]))
        lines += [f"{i + 1} {' '.join(map(repr, map(float, pose)))} 1 {name}", ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{i + 1} {x} {y} {z} {r} {g} {b} 0.5" for i, ((x, y, z), (r, g, b)) in enumerate(zip(POINTS, COLORS))]
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")
    return folder


def run_pycolmap(code, *arguments):
    """Runs a script in a process of its own, because pycolmap clashes with JAX in one process."""
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


_TO_BINARY = """
import pycolmap, sys
reconstruction = pycolmap.Reconstruction()
reconstruction.read_text(sys.argv[1])
reconstruction.write_binary(sys.argv[1])
"""


@functools.cache
def _binary_files(*texts):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for file_name, text in texts:
            (folder / file_name).write_text(text)
        run_pycolmap(_TO_BINARY, folder)
        return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def to_binary(folder):
    texts = sorted((path.name, path.read_text()) for path in folder.glob("*.txt"))
    for name, data in _binary_files(*texts).items():
        (folder / name).write_bytes(data)
    for name, _ in texts:
        (folder / name).unlink()
    return folder


def write_llff(root):
    rows = [
        np.concatenate([np.stack([DOWN[i], RIGHT[i], -FORWARD[i], CENTERS[i], [H, W, FOCAL]], axis=1).ravel(), [1, 9]])
        for i in range(len(NAMES))
    ]
    np.save(root / "poses_bounds.npy", np.stack(rows))


def make_frame(i, file_path):
    matrix = np.eye(4)
    matrix[:3] = np.stack([RIGHT[i], -DOWN[i], -FORWARD[i], CENTERS[i]], axis=1)  # OpenGL: +y up, view along -z
    return {"file_path": file_path, "transform_matrix": matrix.tolist()}


def write_json(path, values):
    path.write_text(json.dumps(values))


def write_blender(root, *, test=(0,), suffix="", **lens):
    lens = lens or {"camera_angle_x": 2 * math.atan(0.5 * W / FOCAL)}
    for name, ids in (("train", [i for i in range(len(NAMES)) if i not in test]), ("test", test)):
        frames = [make_frame(i, f"./images/v{i}{suffix}") for i in ids]
        write_json(root / f"transforms_{name}.json", {**lens, "frames": frames})


def write_nerfstudio(root, names=NAMES, **changes):
    frames = [make_frame(i, f"images/{name}") for i, name in enumerate(names)]
    values = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": W / 2, "cy": H / 2, "w": W, "h": H, "frames": frames}
    write_json(root / "transforms.json", {**values, **changes})


def write_colmap_binary(root):
    to_binary(write_colmap(root))


WRITERS = {
    "colmap text": write_colmap,
    "colmap binary": write_colmap_binary,
    "llff": write_llff,
    "blender": write_blender,
    "nerfstudio": write_nerfstudio,
}


def assert_refused(root, match, **options):
    """Asserts that load_scene raises a UserError of one line. Returns the message."""
    with pytest.raises(UserError, match=match) as caught:
        load_scene(str(root), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
