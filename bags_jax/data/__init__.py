"""Captures from disk: load_scene reads any of the known formats into a Scene."""

import dataclasses
import math
import os
import pathlib

import numpy as np
from jaxtyping import Float

from bags_jax.data import blender, colmap, llff, nerfstudio
from bags_jax.data.images import Capture, Lens, list_photos, name_some, read_photos
from bags_jax.data.poses import ROUNDING, camera_centers
from bags_jax.data.scene import Scene
from bags_jax.data.split import find_hold, split_every, split_listed
from bags_jax.errors import UserError

__all__ = ["load_scene"]

_FORMATS = ("auto", "colmap", "blender", "nerfstudio", "llff")
# Cameras further from the origin than this many times their spread are moved to it: float32 keeps 1e-7 of a coordinate,
# and 1e-4 of the spread is what moves pixels.
_FAR = 1000.0


def load_scene(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    factor: int = 1,
    holdout: int = 0,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Scene:
    """Loads a capture: photographs, cameras, points, and which views are held out.

    Args:
      root: the scene's folder; ~ is expanded.
      format: "colmap", "blender", "nerfstudio", "llff", or "auto": the first of them whose files are there.
      factor: the photographs are used at 1 / factor of their size (from images_{factor}/ where that is complete).
      holdout: every how many views one is held out; 0: by the scene's file hold=N, else 8. Lists of training and test
        views in the scene's own files come first.
      background: sRGB in [0, 1] behind transparent pixels.
    Returns:
      Scene. Photographs of a distorting lens have been undistorted. A scene far from the origin has been moved to it.
    Raises:
      UserError: any input that cannot be used; the message says which and how to repair it.
    """
    _check_options(factor, holdout, background)
    try:
        return _load(_check_folder(root), format, factor, holdout, background)
    except OSError as error:
        if error.filename is None:
            raise
        way_out = "change its permissions, or copy it" if isinstance(error, PermissionError) else "copy it"
        raise UserError(
            f"cannot read {error.filename} ({error.strerror}): expected a scene whose files and folders you may read; "
            f"{way_out} to another place"
        ) from error


def _load(
    folder: pathlib.Path, format: str, factor: int, holdout: int, background: tuple[float, float, float]
) -> Scene:
    """load_scene, except that a file or folder that cannot be read is an OSError."""
    capture = _read_capture(folder, format, factor)
    _check_poses(capture)
    capture = _move_to_origin(capture)
    images, notes = read_photos(
        capture.files,
        root=folder,
        camera_sizes=[(lens.width, lens.height) for lens in capture.lenses],
        factor=factor,
        background=background,
    )
    images, Ks, lens_notes = _apply_lenses(capture, images)
    if capture.test_names is not None:
        train_ids, test_ids = split_listed(capture.names, capture.test_names)
        split_notes = ("holdout is ignored: the scene's files list the held-out views",) if holdout else ()
    else:
        train_ids, test_ids = split_every(len(capture.names), hold=find_hold(folder, holdout))
        split_notes = ()
    finite = np.isfinite(np.hstack([capture.points, capture.point_colors])).all(axis=-1)
    num_points = len(capture.points)
    num_bad = num_points - np.count_nonzero(finite)
    point_notes = (f"{num_bad} of {num_points} points are not finite, left out",) if num_bad else ()
    return Scene(
        names=capture.names,
        images=images,
        viewmats=capture.viewmats.astype(np.float32),
        Ks=Ks.astype(np.float32),
        train_ids=train_ids,
        test_ids=test_ids,
        points=capture.points[finite].astype(np.float32),
        point_colors=capture.point_colors[finite].astype(np.float32),
        depths=None if capture.depths is None else capture.depths.astype(np.float32),
        background=(float(background[0]), float(background[1]), float(background[2])),
        notes=capture.notes + notes + lens_notes + split_notes + point_notes,
    )


def _check_options(factor: int, holdout: int, background: tuple[float, float, float]) -> None:
    if not isinstance(factor, int) or factor < 1:
        raise UserError(f"factor is {factor!r}: expected a whole number >= 1, by which the photographs are shrunk")
    if not isinstance(holdout, int) or holdout < 0:
        raise UserError(f"holdout is {holdout!r}: expected a whole number; 0 means the scene's own rule")
    if len(background) != 3 or not all(0 <= channel <= 1 for channel in background):
        raise UserError(f"background is {background!r}: expected three sRGB values in [0, 1], such as (1, 1, 1)")


def _check_folder(root: str | os.PathLike[str]) -> pathlib.Path:
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(root)))
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"the scene folder {folder} {kind}: expected a folder with photographs and camera poses")
    if not any(folder.iterdir()):
        raise UserError(f"the scene folder {folder} is empty: expected photographs (images/) and camera poses")
    return folder


def _read_capture(folder: pathlib.Path, format: str, factor: int) -> Capture:
    match _detect_format(folder) if format == "auto" else format:
        case "colmap":
            return colmap.read_colmap(folder, factor=factor)
        case "blender":
            return blender.read_blender(folder)
        case "nerfstudio":
            return nerfstudio.read_nerfstudio(folder)
        case "llff":
            return llff.read_llff(folder, factor=factor)
    raise UserError(f"format {format!r} is unknown: expected one of {', '.join(_FORMATS)}")


def _detect_format(folder: pathlib.Path) -> str:
    if colmap.find_model(folder):
        return "colmap"
    for file_name, format in (
        (blender.TRAIN_FILE, "blender"),
        (nerfstudio.TRANSFORMS_FILE, "nerfstudio"),
        (llff.POSES_FILE, "llff"),
    ):
        if (folder / file_name).is_file():
            return format
    raise UserError(
        f"{folder} holds {len(list_photos(folder))} photographs but no camera poses: expected sparse/0 (COLMAP), "
        f"{blender.TRAIN_FILE}, {nerfstudio.TRANSFORMS_FILE} or {llff.POSES_FILE}; "
        f"python -m experiments.sfm --root={folder} estimates them from images/"
    )


def _check_poses(capture: Capture) -> None:
    for name, viewmat in zip(capture.names, capture.viewmats):
        rotation = viewmat[:3, :3]
        if not np.isfinite(viewmat).all():
            raise UserError(f"the pose of view {name} is not finite: estimate it again, or remove the view")
        # 1e-3: json and npy files carry poses with few digits.
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
            raise UserError(
                f"the pose of view {name} is no rotation and translation (determinant {np.linalg.det(rotation):.4g}): "
                f"expected right-handed, unscaled camera axes; remove the scale from its matrix, or the view"
            )


def _move_to_origin(capture: Capture) -> Capture:
    """Moves cameras and points, in float64, from so far away (map coordinates) that float32 would displace them."""
    centers = camera_centers(capture.viewmats)
    middle = np.median(centers, axis=0)  # medians: one lost camera at the origin counts for nothing
    spread = float(np.median(np.linalg.norm(centers - middle, axis=1)))
    distance = float(np.linalg.norm(middle))
    if spread <= ROUNDING * distance:  # a tripod's pictures have no scale: 1 stands for it, as in initialize.py
        spread = 1.0
    if distance <= _FAR * spread:
        return capture
    step = 10.0 ** math.floor(math.log10(spread))  # a round number is easier to add back
    origin = np.rint(middle / step) * step
    viewmats = capture.viewmats.copy()
    viewmats[:, :3, 3] += capture.viewmats[:, :3, :3] @ origin
    place = ", ".join(f"{x:.12g}" for x in origin)
    note = (
        f"the scene lies {distance:.3g} units from the origin, where 32-bit numbers are too coarse, and was moved: "
        f"add ({place}) to exported positions to get the capture's own"
    )
    points = capture.points - origin
    return dataclasses.replace(capture, viewmats=viewmats, points=points, notes=capture.notes + (note,))


def _apply_lenses(
    capture: Capture, images: tuple[np.ndarray, ...]
) -> tuple[tuple[np.ndarray, ...], Float[np.ndarray, "V 3 3"], tuple[str, ...]]:
    """Intrinsics of the pictures at their size here; pictures of distorting lenses are replaced by undistorted ones."""
    flat_images, Ks, undistorted = [], [], []
    for name, lens, image in zip(capture.names, capture.lenses, images):
        height, width = image.shape[:2]
        K = colmap.pinhole_K(lens, width=width, height=height)
        _check_shape(name, lens, width, height)
        if K is None:
            image, K = colmap.undistort(image, lens)
            undistorted.append(name)
        flat_images.append(image)
        Ks.append(K)
    notes = (f"{len(undistorted)} photographs were undistorted: {name_some(undistorted)}",) if undistorted else ()
    return tuple(flat_images), np.stack(Ks), notes


def _check_shape(name: str, lens: Lens, width: int, height: int) -> None:
    """A cropped or turned photograph cannot be told from a resized one by its intrinsics, only by its shape."""
    expected_height = width * lens.height / lens.width
    # Rounding to whole pixels moves either side by up to 1 px; 2 % is far less than any crop or turn that matters.
    slack = max(0.02 * height, 1.0 + math.ceil(lens.height / lens.width))
    if abs(expected_height - height) > slack:
        raise UserError(
            f"photograph {name} is {width} x {height} but its camera {lens.width} x {lens.height}: expected the same "
            f"shape at any size; use the pictures that the poses were estimated from (not cropped, not turned)"
        )
