"""COLMAP models, text and binary (Schoenberger and Frahm, CVPR 2016)."""

import collections
import contextlib
import os
import pathlib

import numpy as np
from jaxtyping import Float

from bags_jax.data.capture import Capture
from bags_jax.data.lens import Lens
from bags_jax.data.pairing import describe_unpaired, find_photo_folder, list_photos, match_photos, name_some
from bags_jax.errors import UserError
from bags_jax.sfm import client

_MODEL_FILES = ("cameras", "images", "points3D")
_SLOWEST_READ = 1e6  # bytes per second; slower reading of a model is an error


def find_model(root: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the COLMAP model; None if there is no model.

    The first of sparse/0, sparse, colmap/sparse/0 and the other numbered folders that has a file of a model.
    """
    parents = root / "sparse", root / "colmap" / "sparse"
    numbered = [path for parent in parents for path in _list_models(parent)]
    places = [parents[0] / "0", parents[0], parents[1] / "0", *numbered]
    file_names = {f"{name}{suffix}" for name in _MODEL_FILES for suffix in (".bin", ".txt")}
    # List each folder: a file in a folder that may not be read can look as if it did not exist.
    return next((path for path in places if path.is_dir() and file_names & set(os.listdir(path))), None)


def has_model(root: pathlib.Path) -> bool:
    """True if a scene's folder has a COLMAP model."""
    return find_model(root) is not None


def _list_models(parent: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders 0, 1, ... in numerical order; COLMAP writes several if it cannot connect all photographs."""
    folders = [path for path in parent.iterdir() if path.name.isdecimal() and path.is_dir()] if parent.is_dir() else []
    return sorted(folders, key=lambda path: int(path.name))


def _count_images(model: pathlib.Path) -> int:
    """Returns the number of registered images without reading the whole model; 0: unreadable."""
    with contextlib.suppress(OSError):
        if _find_suffix(model) == ".bin":
            with (model / "images.bin").open("rb") as file:
                return int.from_bytes(file.read(8), "little")
        with (model / "images.txt").open("rb") as lines:
            return sum(not line.startswith(b"#") for line in lines) // 2
    return 0


def read_colmap(root: pathlib.Path, *, factor: int = 1) -> Capture:
    """Reads the poses, lenses and points of a COLMAP reconstruction.

    Args:
      root: the scene's folder.
      factor: images_{factor}/ may replace a missing images/.
    Raises:
      UserError: no model, a damaged model, or no picture with a pose.
    """
    model = find_model(root)
    if model is None:
        raise UserError(f"{root} has no COLMAP model: expected sparse/0 with {', '.join(_MODEL_FILES)} (.bin or .txt)")
    posed, points, colors = read_model(model)
    folder = find_photo_folder(root, factor)
    photos = list_photos(folder)
    pairs = match_photos(sorted(posed), photos)
    if not pairs:
        raise UserError(
            f"none of the {len(posed)} images of {model} is in {folder} (the model has {min(posed)}, the folder "
            f"{next(iter(photos))}): expected the same names up to the suffix; rename the pictures or run COLMAP again"
        )
    notes = describe_unpaired(sorted(set(posed) - set(pairs)), sorted(set(photos) - set(pairs.values())))
    notes += _describe_siblings(model)
    points_file = model / f"points3D{_find_suffix(model)}"
    if not points_file.is_file():
        notes += (f"{points_file} is missing: training starts without points",)
    return Capture(
        names=tuple(pairs.values()),
        files=tuple(photos[photo] for photo in pairs.values()),
        viewmats=np.stack([posed[name][0] for name in pairs]),
        lenses=tuple(posed[name][1] for name in pairs),
        points=points,
        point_colors=colors,
        notes=notes,
    )


def _describe_siblings(model: pathlib.Path) -> tuple[str, ...]:
    """Returns a note for the user if COLMAP wrote several models."""
    models = _list_models(model.parent)
    if model not in models or len(models) < 2:
        return ()
    largest = max(models, key=_count_images)
    hint = ""
    if _count_images(largest) > _count_images(model):
        hint = f"; {largest.name} has more images: rename the folders to use it"
    return (f"COLMAP made {len(models)} separate models: only {model} is read{hint}",)


def read_model(
    model: pathlib.Path,
) -> tuple[dict[str, tuple[np.ndarray, Lens]], Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """Returns (viewmat, lens) by image name, the points (world frame) and their colours (sRGB in [0, 1]).

    Raises:
      UserError: a file is missing or damaged, or no image has a pose.
    """
    suffix = _find_suffix(model)
    binary = suffix == ".bin"
    for name in ("cameras", "images"):
        if not (model / (name + suffix)).is_file():
            raise UserError(
                f"{model / (name + suffix)} is missing: a COLMAP model is {', '.join(_MODEL_FILES)} ({suffix}); "
                f"copy the missing file, or run COLMAP again"
            )
    files = [path for path in model.iterdir() if path.suffix == suffix]
    for path in files:
        if not path.is_file():  # COLMAP would read a pipe or a device without end
            raise UserError(f"{path} is no file: a COLMAP model is a folder of files; remove it, or run COLMAP again")
        path.open("rb").close()  # raises PermissionError; pycolmap gives no reason
    if not binary:
        _check_names(model / "images.txt")
    work_s = sum(path.stat().st_size for path in files) / _SLOWEST_READ
    try:
        damage = client.call("find_damage", str(model), work_s=work_s) if binary else None
        values = {} if damage else client.call("read_model", str(model), binary, work_s=work_s)
    except RuntimeError as error:
        raise _make_damage_error(model, str(error)) from error
    if damage:
        raise _make_damage_error(*damage)
    posed = {name: (np.vstack([pose, [0.0, 0.0, 0.0, 1.0]]), Lens(*lens)) for name, pose, lens in values["images"]}
    if not posed:
        raise UserError(f"{model} has no image with a pose: expected registered images; run COLMAP's mapper again")
    if values["zero_rotations"]:
        raise UserError(
            f"{model} has images whose rotation is the quaternion 0 0 0 0 ({name_some(values['zero_rotations'])}): "
            f"expected length 1; estimate their poses again, or remove them from the model"
        )
    counts = collections.Counter(name for name, _, _ in values["images"])
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise UserError(
            f"{model} has several images of one name ({name_some(repeated)}): expected one pose for each; remove the "
            f"others from the model, or run COLMAP again"
        )
    return posed, values["xyz"], values["rgb"] / 255


def _find_suffix(model: pathlib.Path) -> str:
    """Returns .bin if the model has any binary file, else .txt."""
    return ".bin" if any((model / f"{name}.bin").is_file() for name in _MODEL_FILES) else ".txt"


def _check_names(path: pathlib.Path) -> None:
    """Raises UserError for an images.txt whose names have spaces, at which COLMAP and pycolmap cut them."""
    with path.open("rb") as lines:  # bytes: names may be in any encoding
        for line in lines:
            words = line.split(maxsplit=9)
            if not words or line.startswith(b"#"):
                continue
            next(lines, None)  # the line of this image's points, which may be empty
            if len(words) == 10 and len(words[9].split()) > 1:
                name = words[9].strip().decode("utf-8", "replace")
                raise UserError(
                    f"{path} has the image name {name!r}: COLMAP's text files cannot hold spaces in names; use the "
                    f"model's binary files (.bin) instead, or rename the picture both on disk and in {path.name}"
                )


def _make_damage_error(path: pathlib.Path | str, reason: str) -> UserError:
    return UserError(
        f"the COLMAP model {path} is damaged ({reason}): expected complete files of one reconstruction; copy them "
        f"again, or run COLMAP again"
    )
