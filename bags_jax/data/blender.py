"""NeRF's synthetic scenes: transforms_train.json, transforms_test.json (Mildenhall et al. 2020)."""

import collections
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from bags_jax.data.images import PHOTO_SUFFIXES, Capture, Lens, name_some, pairing_notes, photo_size
from bags_jax.errors import UserError

TRAIN_FILE, TEST_FILE = "transforms_train.json", "transforms_test.json"


def read_blender(root: pathlib.Path) -> Capture:
    """Reads a Blender scene; transforms_val.json is ignored. Without transforms_test.json the published rule splits.

    Raises:
      UserError: unreadable or incomplete json, or no picture at all.
    """
    paths, viewmats, lenses, missing, test_paths = [], [], [], [], []
    for json_name in (TRAIN_FILE, TEST_FILE):
        json_path = root / json_name
        if json_name == TEST_FILE and not json_path.is_file():
            continue
        transforms = read_transforms(json_path)
        angle = read_number(transforms, "camera_angle_x", json_path)
        if not 0 < angle < math.pi:
            raise UserError(f"{json_path}: camera_angle_x is {angle}; expected radians between 0 and pi")
        for index, frame in enumerate(transforms["frames"]):
            path = find_frame_photo(root, frame, f"{json_path}, frame {index}")
            if path is None:
                missing.append(frame["file_path"])
                continue
            width, height = photo_size(path)
            focal = 0.5 * width / math.tan(0.5 * angle)
            paths.append(path)
            viewmats.append(frame_viewmat(frame, f"{json_path}, frame {index}"))
            lenses.append(Lens("PINHOLE", width, height, (focal, focal, width / 2, height / 2)))
            if json_name == TEST_FILE:
                test_paths.append(path)
    return frames_capture(
        root,
        paths,
        viewmats,
        lenses,
        test_paths=test_paths if (root / TEST_FILE).is_file() else None,
        notes=pairing_notes(missing, ()),
    )


def read_transforms(path: pathlib.Path) -> dict[str, Any]:
    """A transforms file: an object whose "frames" is a list of at least one object.

    Raises:
      UserError: missing, not json, or of another structure.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: expected json with camera poses in 'frames'")
    try:
        transforms = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path} is not readable json ({' '.join(str(error).split())}): write it again") from error
    frames = transforms.get("frames") if isinstance(transforms, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path} has no poses: expected a list 'frames' of objects with file_path and transform_matrix")
    return transforms


def read_number(values: dict[str, Any], key: str, where: object, default: float | None = None) -> float:
    """A finite number of a json object.

    Raises:
      UserError: it is none, or it is missing and there is no default.
    """
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {key} is {value!r}; expected a finite number")
    return float(value)


def find_frame_photo(root: pathlib.Path, frame: dict[str, Any], where: str) -> pathlib.Path | None:
    """The picture of a frame, whose file_path may lack the suffix (NeRF's do); None if there is none.

    Raises:
      UserError: the frame has no file_path.
    """
    file_path = frame.get("file_path")
    if not isinstance(file_path, str) or not file_path:
        raise UserError(f"{where}: file_path is {file_path!r}; expected the path of a picture, relative to {root}")
    path = pathlib.Path(os.path.normpath(root / file_path.replace("\\", "/")))
    candidates = [path] + [path.with_name(path.name + suffix) for suffix in PHOTO_SUFFIXES if path.name]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def frame_viewmat(frame: dict[str, Any], where: str) -> Float[np.ndarray, "4 4"]:
    """cam_from_world with OpenCV axes from a frame's transform_matrix: world_from_cam, OpenGL axes (+y up, +z back).

    Raises:
      UserError: it is no 4 x 4 (or 3 x 4) matrix of numbers.
    """
    try:
        matrix = np.array(frame.get("transform_matrix"), np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{where} ({frame.get('file_path')}): transform_matrix is no 4 x 4 matrix of numbers; add it")
    rotation, center = matrix[:3, :3] * [1.0, -1.0, -1.0], matrix[:3, 3]
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ center
    return viewmat


def frames_capture(
    root: pathlib.Path,
    paths: list[pathlib.Path],
    viewmats: list[np.ndarray],
    lenses: list[Lens],
    *,
    test_paths: list[pathlib.Path] | None,
    notes: tuple[str, ...],
) -> Capture:
    """Sorts the frames of one or several transforms files by name (the path below their common folder).

    Raises:
      UserError: no frame at all, or two frames with one picture.
    """
    if not paths:
        raise UserError(f"{root} has camera poses but none of their pictures ({' '.join(notes)}): check file_path")
    common = pathlib.Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(common).as_posix() for path in paths]
    repeated = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if repeated:
        raise UserError(f"{root}: several frames have the same picture ({name_some(repeated)}); keep one frame of each")
    order = sorted(range(len(names)), key=names.__getitem__)
    test_names = None if test_paths is None else frozenset(path.relative_to(common).as_posix() for path in test_paths)
    return Capture(
        names=tuple(names[i] for i in order),
        files=tuple(paths[i] for i in order),
        viewmats=np.stack([viewmats[i] for i in order]),
        lenses=tuple(lenses[i] for i in order),
        points=np.zeros((0, 3)),
        point_colors=np.zeros((0, 3)),
        test_names=test_names,
        notes=notes,
    )
