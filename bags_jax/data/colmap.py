"""COLMAP models, text and binary, and the undistortion of photographs taken with any of its lens models."""

import collections
import contextlib
import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import Float, UInt8

from bags_jax.data.images import Capture, Lens, find_photo_folder, list_photos, match_photos, name_some, pairing_notes
from bags_jax.errors import UserError
from bags_jax.sfm.client import ask

# Focal lengths of the models that are a pinhole when their distortion coefficients (all that follows f and c) are 0.
_NUM_FOCALS = {"SIMPLE_PINHOLE": 1, "SIMPLE_RADIAL": 1, "RADIAL": 1, "PINHOLE": 2, "OPENCV": 2, "FULL_OPENCV": 2}
_PLANAR_ONLY = ("EQUIRECTANGULAR",)  # models that no planar image can hold; pycolmap would return the input unchanged
_UNDISTORT_COMMAND = "colmap image_undistorter --image_path images --input_path sparse/0 --output_path undistorted"
# Pixels of an undistorted image without a source. Some at its border are only interpolation.
_MAX_BLANK = 0.02
_MODEL_FILES = ("cameras", "images", "points3D")

_SLOWEST_READ = 1e6  # bytes per second


def find_model(root: pathlib.Path) -> pathlib.Path | None:
    """The folder of the COLMAP model: sparse/0, sparse or colmap/sparse/0, whichever has one of its files first.

    Without these, the first of the other numbered folders.
    """
    parents = root / "sparse", root / "colmap" / "sparse"
    places = parents[0] / "0", parents[0], parents[1] / "0", *(path for parent in parents for path in _numbered(parent))
    file_names = {f"{name}{suffix}" for name in _MODEL_FILES for suffix in (".bin", ".txt")}
    # Listed, because asking for a file in a folder that may not be read can look as if it was not there.
    return next((path for path in places if path.is_dir() and file_names & set(os.listdir(path))), None)


def _numbered(parent: pathlib.Path) -> list[pathlib.Path]:
    """The folders 0, 1, ... in which COLMAP leaves models that it could not connect, in order."""
    folders = [path for path in parent.iterdir() if path.name.isdecimal() and path.is_dir()] if parent.is_dir() else []
    return sorted(folders, key=lambda path: int(path.name))


def _count_images(model: pathlib.Path) -> int:
    """Registered images of a model, as far as can be told without reading it whole; 0: none, or it cannot be read."""
    with contextlib.suppress(OSError):
        if _model_suffix(model) == ".bin":
            with (model / "images.bin").open("rb") as file:
                return int.from_bytes(file.read(8), "little")
        with (model / "images.txt").open("rb") as lines:
            return sum(not line.startswith(b"#") for line in lines) // 2
    return 0


def read_colmap(root: pathlib.Path, *, factor: int = 1) -> Capture:
    """Reads the poses, lenses and points of a COLMAP reconstruction.

    Args:
      root: the scene's folder.
      factor: only tells which folder of pictures may stand in for images/.
    Raises:
      UserError: no model, a damaged one, or no picture with a pose.
    """
    model = find_model(root)
    if model is None:
        raise UserError(f"{root} has no COLMAP model: expected sparse/0 with {', '.join(_MODEL_FILES)} (.bin or .txt)")
    posed, points, colors = _read_model(model)
    folder = find_photo_folder(root, factor)
    photos = list_photos(folder)
    pairs = match_photos(sorted(posed), photos)
    if not pairs:
        raise UserError(
            f"none of the {len(posed)} images of {model} is in {folder} (the model has {min(posed)}, the folder "
            f"{next(iter(photos))}): expected the same names up to the suffix; rename the pictures or run COLMAP again"
        )
    # Sorted by the file's name, as the published split is.
    found = sorted((photo, name) for name, photo in pairs.items())
    notes = pairing_notes(sorted(set(posed) - set(pairs)), sorted(set(photos) - set(pairs.values())))
    siblings = _numbered(model.parent)
    if model in siblings and len(siblings) > 1:
        largest = max(siblings, key=_count_images)
        better = (
            f"; {largest.name} has more images: rename the folders to use it"
            if _count_images(largest) > _count_images(model)
            else ""
        )
        notes += (f"COLMAP made {len(siblings)} separate models: only {model} is read{better}",)
    points_file = model / f"points3D{_model_suffix(model)}"
    if not points_file.is_file():
        notes += (f"{points_file} is missing: training starts without points",)
    return Capture(
        names=tuple(photo for photo, _ in found),
        files=tuple(photos[photo] for photo, _ in found),
        viewmats=np.stack([posed[name][0] for _, name in found]),
        lenses=tuple(posed[name][1] for _, name in found),
        points=points,
        point_colors=colors,
        notes=notes,
    )


def pinhole_K(lens: Lens, *, width: int, height: int) -> Float[np.ndarray, "3 3"] | None:
    """Intrinsics (px, pixel centres at +0.5) of a width x height copy of the lens' picture; None if the lens distorts.

    Raises:
      UserError: the lens has parameters that are not finite, or no positive focal length and size.
    """
    if min(lens.width, lens.height) < 1 or not np.isfinite(lens.params).all():
        raise _bad_lens(lens)
    num_focals = _NUM_FOCALS.get(lens.model)
    if num_focals is None or any(lens.params[num_focals + 2 :]):
        return None
    fx, fy, (cx, cy) = lens.params[0], lens.params[num_focals - 1], lens.params[num_focals : num_focals + 2]
    if min(fx, fy) <= 0:
        raise _bad_lens(lens)
    # With pixel centres at +0.5 a coordinate scales with the image: no half pixels to correct.
    x_scale, y_scale = width / lens.width, height / lens.height
    return np.array([[fx * x_scale, 0, cx * x_scale], [0, fy * y_scale, cy * y_scale], [0, 0, 1]])


def undistort(
    image: UInt8[np.ndarray, "_H _W 3"], lens: Lens
) -> tuple[UInt8[np.ndarray, "_h _w 3"], Float[np.ndarray, "3 3"]]:
    """Resamples a photograph as a pinhole camera would have taken it; its size changes so that no pixel is blank.

    Args:
      image: a copy, at any size, of the picture that the lens' parameters belong to.
      lens: any of COLMAP's models.
    Returns:
      The image and its intrinsics (px, pixel centres at +0.5).
    Raises:
      UserError: pycolmap cannot do it, or the coefficients are so large that parts of the result stay blank.
    """
    refused = f"cannot undistort the lens {lens.model} {list(lens.params)} here"
    advice = f"calibrate again, or undistort with COLMAP itself ({_UNDISTORT_COMMAND}) and load the result"
    if lens.model in _PLANAR_ONLY:
        raise UserError(f"{refused}: it sees more than an image plane can show; expected a perspective or fisheye lens")
    try:
        result, K, blank = ask("undistort", image, dataclasses.astuple(lens))
    except RuntimeError as error:
        raise UserError(f"{refused} ({error}): {advice}") from error
    if blank > _MAX_BLANK:
        raise UserError(f"{refused}: {blank:.0%} of the undistorted image would be blank; {advice}")
    return result, K


def _bad_lens(lens: Lens) -> UserError:
    return UserError(
        f"the camera {lens.model} {lens.width} x {lens.height} with parameters {list(lens.params)} is impossible: "
        f"expected positive sizes and focal lengths, and finite numbers; estimate the cameras again"
    )


def _read_model(
    model: pathlib.Path,
) -> tuple[dict[str, tuple[np.ndarray, Lens]], Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """(viewmat, lens) by image name, points and their colours (sRGB in [0, 1])."""
    suffix = _model_suffix(model)
    binary = suffix == ".bin"
    for name in ("cameras", "images"):
        if not (model / (name + suffix)).is_file():
            raise UserError(
                f"{model / (name + suffix)} is missing: a COLMAP model is {', '.join(_MODEL_FILES)}{suffix}"
            )
    files = [path for path in model.iterdir() if path.suffix == suffix and path.is_file()]
    for path in files:
        path.open("rb").close()  # raises here if it may not be read; pycolmap would not say so
    if not binary:
        _check_names(model / "images.txt")
    work_s = sum(path.stat().st_size for path in files) / _SLOWEST_READ
    try:
        damage = ask("find_damage", str(model), work_s=work_s) if binary else None
        values = {} if damage else ask("read_model", str(model), binary, work_s=work_s)
    except RuntimeError as error:
        raise _damaged(model, str(error)) from error
    if damage:
        raise _damaged(*damage)
    posed = {name: (np.vstack([pose, [0.0, 0.0, 0.0, 1.0]]), Lens(*lens)) for name, pose, lens in values["images"]}
    if not posed:
        raise UserError(f"{model} has no image with a pose: expected registered images; run COLMAP's mapper again")
    if values["unturned"]:
        raise UserError(
            f"{model} has images whose rotation is the quaternion 0 0 0 0 ({name_some(values['unturned'])}): expected "
            f"one of length 1; estimate their poses again, or remove them from the model"
        )
    counts = collections.Counter(name for name, _, _ in values["images"])
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise UserError(
            f"{model} has several images of one name ({name_some(repeated)}): expected one pose for each; remove the "
            f"others from the model, or run COLMAP again"
        )
    return posed, values["xyz"], values["rgb"] / 255


def _model_suffix(model: pathlib.Path) -> str:
    """.bin if the model has any binary file, else .txt."""
    return ".bin" if any((model / f"{name}.bin").is_file() for name in _MODEL_FILES) else ".txt"


def _check_names(path: pathlib.Path) -> None:
    """Refuses an images.txt whose names have spaces: pycolmap, as COLMAP, would cut them there.

    Raises:
      UserError: the line of an image has more than its 10 words.
    """
    with path.open("rb") as lines:  # bytes: names may be in any encoding
        for line in lines:
            words = line.split(maxsplit=9)
            if not words or line.startswith(b"#"):
                continue
            next(lines, None)  # the points of this image, maybe none
            if len(words) == 10 and len(words[9].split()) > 1:
                name = words[9].strip().decode("utf-8", "replace")
                raise UserError(
                    f"{path} has the image name {name!r}: COLMAP's text files cannot hold spaces in names; use the "
                    f"model's binary files (.bin) instead, or rename the picture both on disk and in {path.name}"
                )


def _damaged(path: pathlib.Path | str, reason: str) -> UserError:
    return UserError(
        f"the COLMAP model {path} is damaged ({reason}): expected complete files of one reconstruction; copy them "
        f"again, or run COLMAP again"
    )
