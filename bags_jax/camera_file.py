"""Reads the camera paths that nerfstudio's viewer writes (camera_path.json)."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from bags_jax.camera_path import CameraPath
from bags_jax.errors import UserError

_LARGEST_SIDE = 8192  # px
_MOST_FRAMES = 100_000
_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL camera axes (+y up, looks along -z) from OpenCV axes


def read_camera_path(path: str | os.PathLike) -> CameraPath:
    """Reads a camera path in the layout of nerfstudio: render_width, render_height, and camera_path, a list of cameras.

    Each camera has camera_to_world (4 x 4 numbers, row by row, OpenGL axes) and fov (vertical, degrees). The poses must
    be in the world frame of the capture; fps is used where the file has it.

    Raises:
      UserError: no such file, or it is not such a path.
    """
    path = pathlib.Path(path).expanduser()
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give --path a nerfstudio camera_path.json") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable json ({' '.join(str(error).split())}): write it again") from error
    frames = values.get("camera_path") if isinstance(values, dict) else None
    if not isinstance(frames, list) or not 0 < len(frames) <= _MOST_FRAMES:
        raise UserError(f"{path} has no cameras: expected a list 'camera_path', as nerfstudio's viewer writes it")
    kind = values.get("camera_type", "perspective")
    if kind != "perspective":
        raise UserError(f"{path} has camera_type {kind!r}; expected perspective: write the path again")
    width, height = (_read_size(values, name, path) for name in ("render_width", "render_height"))
    poses, Ks = [], []
    for index, frame in enumerate(frames):
        where = f"{path}, camera {index}"
        poses.append(_read_pose(frame, where))
        focal = height / 2 / math.tan(math.radians(_read_fov(frame, values, where)) / 2)
        Ks.append([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    viewmats = np.stack([np.linalg.inv(pose @ _OPENCV) for pose in poses]).astype(np.float32)
    sizes = np.repeat([[height, width]], len(frames), axis=0)
    fps = _number(values.get("fps"))
    return CameraPath(viewmats, np.array(Ks, np.float32), sizes, fps=fps if 0 < fps <= 240 else None)


def _read_size(values: dict[str, Any], name: str, path: pathlib.Path) -> int:
    size = _number(values.get(name))
    if not 1 <= size <= _LARGEST_SIDE or size != int(size):
        raise UserError(f"{path}: {name} is {values.get(name)!r}; expected a whole number of 1 to {_LARGEST_SIDE} px")
    return int(size)


def _read_pose(frame: Any, where: str) -> np.ndarray:
    """Returns camera_to_world; its rotation is made exact."""
    matrix = frame.get("camera_to_world") if isinstance(frame, dict) else None
    try:
        pose = np.array(matrix, np.float64).reshape(4, 4)
    except (ValueError, TypeError, OverflowError):
        pose = np.full((4, 4), np.nan)
    scale = np.cbrt(np.linalg.det(pose[:3, :3])) if np.all(np.isfinite(pose)) else 0.0
    rotation = pose[:3, :3] / (scale if scale > 1e-9 else np.nan)
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2):
        raise UserError(f"{where}: camera_to_world is no camera pose; expected 16 numbers with a rotation, row by row")
    left, _, right = np.linalg.svd(rotation)
    pose[:3, :3], pose[3] = left @ right, (0, 0, 0, 1)
    return pose


def _read_fov(frame: dict[str, Any], values: dict[str, Any], where: str) -> float:
    given = frame.get("fov", values.get("default_fov"))
    fov = _number(given)
    if not 1 <= fov < 179:
        raise UserError(f"{where}: fov is {given!r}; expected the vertical field of view, 1 to 179 degrees")
    return fov


def _number(value: Any) -> float:
    """Returns a finite number, or -1 for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e12 else -1.0
