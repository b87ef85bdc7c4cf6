"""Frames of nerfstudio's transforms.json and Blender's transforms_*.json: their pictures, poses and lenses."""

import collections
import dataclasses
import json
import math
import os
import pathlib
import unicodedata
from typing import Any

import numpy as np
from jaxtyping import Float

from bags_jax.data.capture import Capture
from bags_jax.data.images import read_photo_size
from bags_jax.data.lens import Lens
from bags_jax.data.pairing import PHOTO_SUFFIXES, describe_unpaired, is_photo, match_photos, name_some
from bags_jax.errors import UserError, show

_MAX_NUMBER = 1e30  # of a lens: float32 holds it, and its size can be rounded
_MIN_ANGLE = 1e-6  # radians
_MAX_ODDNESS = 0.1  # largest deviation from square pixels that is accepted from two camera angles
_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One entry of the list "frames" in a transforms file."""

    file_path: str
    photo: pathlib.Path | None  # None: there is no such picture
    own: dict[str, Any]  # the frame's entries
    shared: dict[str, Any]  # the file's entries, used where the frame has none
    where: str  # file and index, for messages


def read_transforms(path: pathlib.Path) -> dict[str, Any]:
    """Reads a transforms file: an object whose "frames" is a list of at least one object.

    Raises:
      UserError: the file is missing, not json, or of another structure.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: expected json with camera poses in 'frames'")
    try:
        transforms = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte order mark
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path} is not readable json ({' '.join(str(error).split())}): write it again") from error
    frames = transforms.get("frames") if isinstance(transforms, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{path} has no poses: expected a list 'frames' of objects with file_path and transform_matrix")
    return transforms


def list_frames(root: pathlib.Path, transforms: dict[str, Any], json_path: pathlib.Path) -> list[Frame]:
    """Returns the frames of a transforms file, with the picture of each.

    file_path may lack the suffix, as in NeRF's files. Names match as loosely as those of COLMAP's images do.

    Raises:
      UserError: a frame has no file_path, or a file_path that matches several files.
    """
    paths = []
    for index, values in enumerate(transforms["frames"]):
        file_path = values.get("file_path")
        if not isinstance(file_path, str) or not file_path:
            raise UserError(
                f"{json_path}, frame {index}: file_path is {show(file_path)}; expected the path of a picture, relative to "
                f"{root}"
            )
        paths.append(join_path(root, file_path))
    photos = _find_photos(paths)
    return [
        Frame(values["file_path"], photos[path], values, transforms, f"{json_path}, frame {index}")
        for index, (values, path) in enumerate(zip(transforms["frames"], paths, strict=True))
    ]


def join_path(root: pathlib.Path, file_path: str) -> pathlib.Path:
    """Returns the place of a file_path: relative to the scene's folder or absolute, with slashes of any system."""
    return pathlib.Path(os.path.normpath(root / file_path.replace("\\", "/")))


def _find_photos(paths: list[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path | None]:
    """Returns the picture at each path: the file itself, with a suffix, or of another spelling; None: there is none."""
    photos = {path: _find_with_suffix(path) for path in paths}
    missing: dict[pathlib.Path, dict[str, pathlib.Path]] = {}
    for path in (path for path, photo in photos.items() if photo is None and path.name):
        name = path.name if path.suffix.lower() in PHOTO_SUFFIXES else path.name + PHOTO_SUFFIXES[0]
        missing.setdefault(path.parent, {})[name] = path
    for parent, paths_by_name in missing.items():
        folder = _find_folder(parent)
        if folder is not None:
            names = sorted(path.name for path in folder.iterdir() if is_photo(path) and path.is_file())
            pairs = match_photos(list(paths_by_name), names)
            photos.update({paths_by_name[name]: folder / photo for name, photo in pairs.items()})
    return photos


def _find_with_suffix(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the file, or the first file with the path and a picture's suffix behind it."""
    candidates = [path] + [path.with_name(path.name + suffix) for suffix in PHOTO_SUFFIXES if path.name]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _find_folder(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder with accents encoded as on disk; None if there is no such folder."""
    forms = [str(folder), *(unicodedata.normalize(form, str(folder)) for form in ("NFC", "NFD"))]
    return next((path for path in map(pathlib.Path, forms) if path.is_dir()), None)


def make_capture(
    root: pathlib.Path, frames: list[Frame], *, test_frames: list[Frame] | None, notes: tuple[str, ...] = ()
) -> Capture:
    """Returns the capture of the frames that have a picture. A view is named by its path below their common folder.

    Args:
      root: the scene's folder.
      frames: training and test frames.
      test_frames: the held-out ones; None: the files list none.
      notes: for the user; a note on missing pictures comes first.
    Raises:
      UserError: a bad pose or lens, no picture at all, or two frames with one picture.
    """
    notes = describe_unpaired([frame.file_path for frame in frames if frame.photo is None], ()) + notes
    posed = [(frame, frame.photo) for frame in frames if frame.photo is not None]
    if not posed:
        raise UserError(f"{root} has camera poses but none of their pictures ({' '.join(notes)}): check file_path")
    views = [(_read_viewmat(frame), _read_lens(frame, photo)) for frame, photo in posed]
    files = [photo for _, photo in posed]
    common = pathlib.Path(os.path.commonpath([photo.parent for photo in files]))
    names = [photo.relative_to(common).as_posix() for photo in files]
    repeated = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if repeated:
        raise UserError(f"{root}: several frames have the same picture ({name_some(repeated)}); keep one frame of each")
    test_names = None
    if test_frames is not None:
        test_files = {frame.photo for frame in test_frames}
        test_names = frozenset(name for name, photo in zip(names, files, strict=True) if photo in test_files)
    return Capture(
        names=tuple(names),
        files=tuple(files),
        viewmats=np.stack([viewmat for viewmat, _ in views]),
        lenses=tuple(lens for _, lens in views),
        test_names=test_names,
        notes=notes,
        mask_files=_find_masks(root, [frame for frame, _ in posed]),
    )


def _find_masks(root: pathlib.Path, frames: list[Frame]) -> tuple[pathlib.Path | None, ...]:
    """Returns the mask file that each frame names by mask_path; () if none does.

    Raises:
      UserError: a mask that is not there.
    """
    paths = [frame.own.get("mask_path") for frame in frames]
    if not any(paths):
        return ()
    files = [join_path(root, str(path)) if path else None for path in paths]
    for frame, file in zip(frames, files, strict=True):
        if file is not None and not file.is_file():
            raise UserError(f"{frame.where}: the mask {file} does not exist: expected a picture; correct mask_path")
    return tuple(files)


def _read_viewmat(frame: Frame) -> Float[np.ndarray, "4 4"]:
    """Returns cam_from_world, OpenCV axes, from transform_matrix: world_from_cam, OpenGL axes (+y up, +z back)."""
    try:
        matrix = np.array(frame.own.get("transform_matrix"), np.float64)
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number of 400 digits
        matrix = np.zeros(0)
    where = f"{frame.where} ({frame.file_path})"
    if matrix.shape not in ((4, 4), (3, 4)):
        raise UserError(f"{where}: transform_matrix is no 4 x 4 matrix of numbers; add it")
    if not np.allclose(matrix[3:], [0.0, 0.0, 0.0, 1.0], atol=1e-6):
        is_transposed = np.allclose(matrix[:, 3], [0.0, 0.0, 0.0, 1.0], atol=1e-6)
        raise UserError(
            f"{where}: transform_matrix has the last row {show(matrix[3].tolist())}; expected 0 0 0 1 below rotation and "
            f"camera centre; {'transpose it' if is_transposed else 'write it again'}"
        )
    rotation, center = matrix[:3, :3] * [1.0, -1.0, -1.0], matrix[:3, 3]
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ center
    return viewmat


def _read_lens(frame: Frame, photo: pathlib.Path) -> Lens:
    """Returns the lens of a frame.

    Raises:
      UserError: no focal length, a value that is not a number, or an unknown camera_model.
    """
    values, where = {**frame.shared, **frame.own}, frame.where

    def read(key: str, default: float | None = None) -> float:
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MAX_NUMBER:
            raise UserError(f"{where} ({photo.name}): {key} is {show(value)}; expected a finite number")
        return float(value)

    def find_focal(axis: str, size: float) -> float | None:
        key = f"camera_angle_{axis}"
        if f"fl_{axis}" in values or key not in values:
            return read(f"fl_{axis}") if f"fl_{axis}" in values else None
        if not _MIN_ANGLE < read(key) < math.pi - _MIN_ANGLE:
            raise UserError(f"{where}: {key} is {show(values[key])}; expected radians between 0 and pi")
        return 0.5 * size / math.tan(0.5 * read(key))

    # w and h are the size that the intrinsics belong to; without them it is the picture's own.
    width, height = read_photo_size(photo) if "w" not in values or "h" not in values else (read("w"), read("h"))
    fx, fy = find_focal("x", width), find_focal("y", height)
    if fx is None:
        raise UserError(
            f"{where}: fl_x is missing; expected fl_x (px) or camera_angle_x (radians), for this frame or for all"
        )
    if fy is not None and fx and "fl_y" not in values and abs(fy / fx - 1.0) > _MAX_ODDNESS:
        raise UserError(
            f"{where}: camera_angle_x and camera_angle_y belong to pixels {fx / fy:.2f} times as high as wide "
            f"(Blender's angle_y is not the picture's); expected nearly square pixels; remove camera_angle_y, or give "
            f"fl_x and fl_y"
        )
    center = (fx, fx if fy is None else fy, read("cx", width / 2), read("cy", height / 2))
    k1, k2, k3, k4, p1, p2 = (read(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = values.get("camera_model", "OPENCV_FISHEYE" if values.get("is_fisheye") else "OPENCV")
    if model == "OPENCV_FISHEYE":
        return Lens("OPENCV_FISHEYE", round(width), round(height), (*center, k1, k2, k3, k4))
    if model not in _PERSPECTIVE or k4:
        raise UserError(
            f"{where}: camera_model {show(model)}{' with k4' if k4 else ''} is not supported; expected one of "
            f"{', '.join(_PERSPECTIVE)} or OPENCV_FISHEYE; undistort the pictures first (colmap image_undistorter)"
        )
    if k3:
        return Lens("FULL_OPENCV", round(width), round(height), (*center, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    return Lens("OPENCV", round(width), round(height), (*center, k1, k2, p1, p2))
