"""What nerfstudio's transforms.json and Blender's transforms_*.json share: frames, their pictures, poses and lenses."""

import collections
import json
import math
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bags_jax.data.images import PHOTO_SUFFIXES, Capture, Lens, match_photos, name_some, photo_size
from bags_jax.errors import UserError

_ODD_PIXELS = 0.1  # how far from square the pixels may be that two angles tell of
_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def read_transforms(path: pathlib.Path) -> dict[str, Any]:
    """A transforms file: an object whose "frames" is a list of at least one object.

    Raises:
      UserError: missing, not json, or of another structure.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: expected json with camera poses in 'frames'")
    try:
        transforms = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors write a byte order mark
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


def find_frame_photos(
    root: pathlib.Path, frames: Sequence[dict[str, Any]], json_path: pathlib.Path
) -> list[pathlib.Path | None]:
    """The picture of each frame; None where there is none.

    file_path may lack the suffix (NeRF's do), and its name is matched as loosely as those of COLMAP's images are.

    Raises:
      UserError: a frame has no file_path, or one that could be any of several files.
    """
    paths = []
    for index, frame in enumerate(frames):
        file_path = frame.get("file_path")
        if not isinstance(file_path, str) or not file_path:
            raise UserError(
                f"{json_path}, frame {index}: file_path is {file_path!r}; expected the path of a picture, relative to "
                f"{root}"
            )
        paths.append(join_path(root, file_path))
    found = {path: _find_with_suffix(path) for path in paths}
    lost: dict[pathlib.Path, dict[str, pathlib.Path]] = {}
    for path in (path for path, photo in found.items() if photo is None and path.name):
        name = path.name if path.suffix.lower() in PHOTO_SUFFIXES else path.name + PHOTO_SUFFIXES[0]
        lost.setdefault(path.parent, {})[name] = path
    for parent, wanted in lost.items():
        folder = _find_folder(parent)
        if folder is not None:
            pairs = match_photos(list(wanted), _photo_names(folder))
            found.update({wanted[name]: folder / photo for name, photo in pairs.items()})
    return [found[path] for path in paths]


def join_path(root: pathlib.Path, file_path: str) -> pathlib.Path:
    """Where a file_path points to: it is relative to the scene's folder or absolute, with slashes of any system."""
    return pathlib.Path(os.path.normpath(root / file_path.replace("\\", "/")))


def _find_with_suffix(path: pathlib.Path) -> pathlib.Path | None:
    """The file, or the first that has the path and a picture's suffix behind it."""
    candidates = [path] + [path.with_name(path.name + suffix) for suffix in PHOTO_SUFFIXES if path.name]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _find_folder(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder, whichever way accents are encoded in its path on disk; None if there is none."""
    forms = [str(folder), *(unicodedata.normalize(form, str(folder)) for form in ("NFC", "NFD"))]
    return next((path for path in map(pathlib.Path, forms) if path.is_dir()), None)


def _photo_names(folder: pathlib.Path) -> list[str]:
    """The pictures right in a folder, sorted."""
    paths = (path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    return sorted(path.name for path in paths if not path.name.startswith("."))


def frame_viewmat(frame: dict[str, Any], where: str) -> Float[np.ndarray, "4 4"]:
    """cam_from_world with OpenCV axes from a frame's transform_matrix: world_from_cam, OpenGL axes (+y up, +z back).

    Raises:
      UserError: it is no 4 x 4 (or 3 x 4) matrix of numbers, or its last row is not 0 0 0 1.
    """
    try:
        matrix = np.array(frame.get("transform_matrix"), np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{where} ({frame.get('file_path')}): transform_matrix is no 4 x 4 matrix of numbers; add it")
    if not np.allclose(matrix[3:], [0.0, 0.0, 0.0, 1.0], atol=1e-6):
        by_columns = np.allclose(matrix[:, 3], [0.0, 0.0, 0.0, 1.0], atol=1e-6)
        raise UserError(
            f"{where} ({frame.get('file_path')}): transform_matrix has the last row {matrix[3].tolist()}; expected "
            f"0 0 0 1 below rotation and camera centre; {'transpose it' if by_columns else 'write it again'}"
        )
    rotation, center = matrix[:3, :3] * [1.0, -1.0, -1.0], matrix[:3, 3]
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ center
    return viewmat


def frame_lens(values: dict[str, Any], path: pathlib.Path, where: str) -> Lens:
    """The lens of one frame.

    Args:
      values: the frame's own entries over those for all frames.
      path: the frame's picture; its size counts where w and h are not given.
      where: the file and the frame, for messages.
    Raises:
      UserError: no focal length, a value that is no number, or a camera_model that is none of the known ones.
    """

    def number(key: str, default: float | None = None) -> float:
        return read_number(values, key, f"{where} ({path.name})", default)

    def focal(axis: str, size: float) -> float | None:
        key = f"camera_angle_{axis}"
        if f"fl_{axis}" in values or key not in values:
            return number(f"fl_{axis}") if f"fl_{axis}" in values else None
        if not 0 < number(key) < math.pi:
            raise UserError(f"{where}: {key} is {values[key]}; expected radians between 0 and pi")
        return 0.5 * size / math.tan(0.5 * number(key))

    # The size belongs to the intrinsics; where it is not given, they are those of the picture itself.
    width, height = photo_size(path) if "w" not in values or "h" not in values else (number("w"), number("h"))
    fx, fy = focal("x", width), focal("y", height)
    if fx is None:
        raise UserError(f"{where}: fl_x is missing; expected fl_x (px) or camera_angle_x (radians), in it or for all")
    if fy is not None and "fl_y" not in values and abs(fy / fx - 1.0) > _ODD_PIXELS:
        raise UserError(
            f"{where}: camera_angle_x and camera_angle_y are those of pixels {fx / fy:.2f} times as high as wide (Blender's "
            f"angle_y is not that of the picture); expected nearly square ones; remove camera_angle_y, or give fl_x and fl_y"
        )
    center = (fx, fx if fy is None else fy, number("cx", width / 2), number("cy", height / 2))
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
