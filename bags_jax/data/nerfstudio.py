"""nerfstudio scenes: transforms.json (Tancik et al. 2023), also as written by instant-ngp's scripts."""

import dataclasses
import pathlib
import unicodedata
from typing import Any

import numpy as np
from jaxtyping import Float

from bags_jax.data.capture import Capture
from bags_jax.data.pairing import name_some
from bags_jax.data.transforms import join_path, list_frames, make_capture, read_transforms
from bags_jax.errors import UserError, show

TRANSFORMS_FILE = "transforms.json"
_LISTS = ("train_filenames", "test_filenames", "val_filenames")
_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


def read_nerfstudio(root: pathlib.Path, *, factor: int = 1) -> Capture:
    """Reads transforms.json: poses, a lens for all frames or for each, points, and the lists of held-out views.

    applied_transform is ignored: it has been applied to the poses and the points alike. Views that only val_filenames
    lists are left out.

    Args:
      root: the scene's folder.
      factor: without effect, because the file names each picture.
    Raises:
      UserError: unreadable or incomplete json, an unknown lens, no picture, a list that names no frame, a damaged PLY.
    """
    del factor
    json_path = root / TRANSFORMS_FILE
    transforms = read_transforms(json_path)
    frames = list_frames(root, transforms, json_path)
    (train_paths, test_paths, val_paths), notes = _read_lists(transforms, root, json_path)
    kept, test_frames, unlisted = [], [], []
    for frame in frames:
        path = _normalize(root, frame.file_path)
        in_test = path in (test_paths or ())
        in_train = path not in (val_paths or ()) if train_paths is None else path in train_paths
        if frame.photo is not None and not (in_train or in_test):
            unlisted.append(frame.file_path)
            continue
        kept.append(frame)
        if in_test:
            test_frames.append(frame)
    if unlisted:
        notes += (f"{len(unlisted)} frames are in neither split of {json_path.name}: {name_some(unlisted)}",)
    is_split = train_paths is not None or test_paths is not None
    capture = make_capture(root, kept, test_frames=test_frames if is_split else None, notes=notes)
    return _add_points(capture, root, transforms.get("ply_file_path"), json_path)


def read_ply_points(path: pathlib.Path) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """Reads the vertices of a PLY: points (x, y, z) and colours (red, green, blue as sRGB in [0, 1]; gray if absent).

    The encoding is ascii or binary_little_endian. The vertices are the first element and have no list properties.

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
        count, fields = _read_vertex_layout(lines)
        body = body[body.index(b"\n") + 1 :]
        if encoding == "binary_little_endian":
            vertices = np.frombuffer(body, np.dtype(fields), count)
        elif encoding == "ascii":
            rows = body.decode("ascii").splitlines()[:count]
            with np.errstate(over="ignore"):  # infinite then; the loader leaves such points out
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
    except PermissionError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, StopIteration, OverflowError, MemoryError, OSError) as error:
        raise UserError(f"cannot read the points of {path} ({type(error).__name__}: {error}): {expected}") from error
    return points, colors


def _read_vertex_layout(lines: list[list[str]]) -> tuple[int, list[tuple[str, str]]]:
    """Returns the number of vertices and their (name, numpy type) fields, from the words of the header's lines."""
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
        raise UserError(f"{json_path}: ply_file_path is {show(ply_file_path)}; expected a path relative to {root}")
    path = root / ply_file_path
    if not path.is_file():
        note = f"{json_path.name} names the points {ply_file_path}, which is missing: training starts without points"
        return dataclasses.replace(capture, notes=capture.notes + (note,))
    points, colors = read_ply_points(path)
    return dataclasses.replace(capture, points=points, point_colors=colors)


def _read_lists(
    transforms: dict[str, Any], root: pathlib.Path, json_path: pathlib.Path
) -> tuple[list[frozenset[str] | None], tuple[str, ...]]:
    """Returns the paths in each of _LISTS (None: there is no such list), and notes on paths that no frame has."""
    listed, notes = [], ()
    frames = [frame["file_path"] for frame in transforms["frames"]]
    known = {_normalize(root, name) for name in frames}
    for key in _LISTS:
        names = transforms.get(key)
        if names is None:
            listed.append(None)
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{json_path}: {key} is {show(names)}; expected a list of file paths")
        lost = [name for name in names if _normalize(root, name) not in known]
        if names and len(lost) == len(names) and key != "val_filenames":
            raise UserError(
                f"{json_path}: none of the {len(names)} names in {key} is the file_path of a frame (the list has "
                f"{names[0]}, the first frame {frames[0]}): expected the same paths; correct the list or remove it"
            )
        if lost:
            notes += (f"{len(lost)} of the {len(names)} names in {key} are no frame's: {name_some(lost)}",)
        listed.append(frozenset(_normalize(root, name) for name in names))
    return listed, notes


def _normalize(root: pathlib.Path, file_path: str) -> str:
    """Returns one spelling for each file, so that lists and frames can be compared."""
    return unicodedata.normalize("NFC", str(join_path(root, file_path)))
