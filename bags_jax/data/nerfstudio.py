"""nerfstudio scenes: transforms.json (Tancik et al. 2023), also as written by instant-ngp's scripts."""

import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from bags_jax.data.blender import find_frame_photo, frame_viewmat, frames_capture, read_number, read_transforms
from bags_jax.data.images import Capture, Lens, name_some, pairing_notes, photo_size
from bags_jax.errors import UserError

TRANSFORMS_FILE = "transforms.json"
_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


def read_nerfstudio(root: pathlib.Path) -> Capture:
    """Reads transforms.json: a lens for all or for each frame, poses, points, and the split where it is listed.

    applied_transform is left alone: it has been applied to the poses and to the points alike. Views that only
    val_filenames lists are left out.

    Raises:
      UserError: unreadable or incomplete json, a lens that is none of the known ones, no picture, a damaged PLY.
    """
    json_path = root / TRANSFORMS_FILE
    transforms = read_transforms(json_path)
    train_listed, test_listed = (_listed(transforms, key, json_path) for key in ("train_filenames", "test_filenames"))
    paths, viewmats, lenses, missing, unlisted, test_paths = [], [], [], [], [], []
    for index, frame in enumerate(transforms["frames"]):
        where = f"{json_path}, frame {index}"
        path = find_frame_photo(root, frame, where)
        listed_as = _normalise(frame["file_path"])
        in_test = listed_as in (test_listed or ())
        if path is None:
            missing.append(frame["file_path"])
        elif not in_test and train_listed is not None and listed_as not in train_listed:
            unlisted.append(frame["file_path"])
        else:
            paths.append(path)
            viewmats.append(frame_viewmat(frame, where))
            lenses.append(_lens({**transforms, **frame}, path, where))
            if in_test:
                test_paths.append(path)
    notes = pairing_notes(missing, ())
    if unlisted:
        notes += (f"{len(unlisted)} frames are in neither split of {json_path.name}: {name_some(unlisted)}",)
    is_split = train_listed is not None or test_listed is not None
    capture = frames_capture(root, paths, viewmats, lenses, test_paths=test_paths if is_split else None, notes=notes)
    return _add_points(capture, root, transforms.get("ply_file_path"), json_path)


def read_ply_points(path: pathlib.Path) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """Points (x, y, z) and colours (red, green, blue as sRGB in [0, 1]; gray if absent) of a PLY's vertices.

    ascii and binary_little_endian; the vertices must be the first element and have no list properties.

    Raises:
      UserError: another layout, or a damaged file.
    """
    expected = (
        "expected an ascii or binary_little_endian PLY whose first element is vertex, with x y z; export it again"
    )
    try:
        data = path.read_bytes()
        header, separator, body = data.partition(b"end_header")
        lines = [line.split() for line in header.decode("ascii").splitlines()]
        if not separator or lines[0] != ["ply"]:
            raise ValueError("no PLY header")
        encoding = next(line[1] for line in lines if line[:1] == ["format"])
        count, fields = _vertex_layout(lines)
        body = body[body.index(b"\n") + 1 :]
        if encoding == "binary_little_endian":
            vertices = np.frombuffer(body, np.dtype(fields), count)
        elif encoding == "ascii":
            rows = body.decode("ascii").splitlines()[:count]
            vertices = np.array([tuple(map(float, row.split()[: len(fields)])) for row in rows], np.dtype(fields))
        else:
            raise ValueError(f"format {encoding}")
        if len(vertices) != count:
            raise ValueError(f"{len(vertices)} of {count} vertices")
        points = np.stack([vertices[axis] for axis in "xyz"], axis=-1).astype(np.float64)
        colors = np.full((count, 3), 0.5)
        if "red" in (vertices.dtype.names or ()):
            is_integer = vertices.dtype["red"].kind in "iu"
            colors = np.stack([vertices[name] for name in ("red", "green", "blue")], axis=-1).astype(np.float64)
            colors = np.clip(colors / np.iinfo(vertices.dtype["red"]).max if is_integer else colors, 0, 1)
    except (ValueError, TypeError, KeyError, IndexError, StopIteration, OverflowError, MemoryError, OSError) as error:
        raise UserError(f"cannot read the points of {path} ({type(error).__name__}: {error}): {expected}") from error
    return points, colors


def _vertex_layout(lines: list[list[str]]) -> tuple[int, list[tuple[str, str]]]:
    """Number of vertices and their (name, numpy type) fields, from the header's words."""
    elements = [i for i, line in enumerate(lines) if line[:1] == ["element"]]
    if not elements or lines[elements[0]][1] != "vertex":
        raise ValueError("the first element is not vertex")
    last = elements[1] if len(elements) > 1 else len(lines)
    properties = [line for line in lines[elements[0] + 1 : last] if line[:1] == ["property"]]
    count = int(lines[elements[0]][2])
    if count < 0:
        raise ValueError(f"{count} vertices")
    return count, [(line[2], "<" + _PLY_TYPES[line[1]]) for line in properties]


def _add_points(capture: Capture, root: pathlib.Path, ply_file_path: Any, json_path: pathlib.Path) -> Capture:
    if ply_file_path is None:
        return capture
    if not isinstance(ply_file_path, str):
        raise UserError(f"{json_path}: ply_file_path is {ply_file_path!r}; expected a path relative to {root}")
    path = root / ply_file_path
    if not path.is_file():
        note = f"{json_path.name} names the points {ply_file_path}, which is missing: training starts without points"
        return dataclasses.replace(capture, notes=capture.notes + (note,))
    points, colors = read_ply_points(path)
    return dataclasses.replace(capture, points=points, point_colors=colors)


def _listed(transforms: dict[str, Any], key: str, json_path: pathlib.Path) -> frozenset[str] | None:
    names = transforms.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{json_path}: {key} is {names!r}; expected a list of file paths")
    return frozenset(_normalise(name) for name in names)


def _normalise(file_path: str) -> str:
    return os.path.normpath(file_path.replace("\\", "/"))


def _lens(values: dict[str, Any], path: pathlib.Path, where: str) -> Lens:
    """The lens of one frame; `values` holds the frame's own entries over those for all frames."""

    def number(key: str, default: float | None = None) -> float:
        return read_number(values, key, f"{where} ({path.name})", default)

    # The size belongs to the intrinsics; where it is not given, they are those of the picture itself.
    width, height = photo_size(path) if "w" not in values or "h" not in values else (number("w"), number("h"))
    if "fl_x" not in values and "camera_angle_x" in values:
        angle = number("camera_angle_x")
        if not 0 < angle < math.pi:
            raise UserError(f"{where}: camera_angle_x is {angle}; expected radians between 0 and pi")
        fx = 0.5 * width / math.tan(0.5 * angle)
    else:
        fx = number("fl_x")
    center = (fx, number("fl_y", fx), number("cx", width / 2), number("cy", height / 2))
    k1, k2, k3, k4, p1, p2 = (number(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = values.get("camera_model", "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV")
    if model == "OPENCV_FISHEYE":
        return Lens("OPENCV_FISHEYE", round(width), round(height), (*center, k1, k2, k3, k4))
    if model not in _PERSPECTIVE or k4:
        raise UserError(
            f"{where}: camera_model {model!r}{' with k4' if k4 else ''} is not supported; expected one of "
            f"{', '.join(_PERSPECTIVE)} or OPENCV_FISHEYE; undistort the pictures first (colmap image_undistorter)"
        )
    if k3:
        return Lens("FULL_OPENCV", round(width), round(height), (*center, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    return Lens("OPENCV", round(width), round(height), (*center, k1, k2, p1, p2))
