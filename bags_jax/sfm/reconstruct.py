"""Structure from motion: camera poses and points of photographs, by COLMAP (Schoenberger and Frahm, CVPR 2016)."""

import collections
import dataclasses
import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from bags_jax.data.colmap import find_model
from bags_jax.data.images import read_photo_size
from bags_jax.data.pairing import PHOTO_SUFFIXES, list_photos, name_some
from bags_jax.errors import UserError
from bags_jax.sfm import client

MIN_PHOTOS = 3
_WORK_S = 7 * 86400.0  # no practical limit: hundreds of photographs take hours, and the user can interrupt


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The result of structure from motion."""

    model: pathlib.Path  # folder of the COLMAP model, which load_scene reads
    posed_names: tuple[str, ...]  # photographs with a pose
    lost_names: tuple[str, ...]  # photographs without a pose
    num_points: int
    error_px: float  # mean distance between a point's projection and its feature, px of the photographs


def reconstruct(
    root: str | os.PathLike[str], *, max_size: int = 800, report: Callable[[str], None] = lambda line: None
) -> Reconstruction:
    """Writes root/sparse/0, a COLMAP model of the photographs in root/images.

    Photographs of one size share one camera with one focal length. If COLMAP makes several models that it cannot
    connect, the model with the most photographs is written.

    Args:
      root: the capture's folder; ~ is expanded.
      max_size: longer side, in px, of the copies that features are extracted from. A smaller copy has less blur in px.
      report: receives one line for each step of the work.
    Raises:
      UserError: the folder has a model already, has fewer than 3 photographs, no poses are found, or a file cannot be
        read or written.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is no folder: expected the folder that holds images/; correct the path")
    if (model := find_model(root)) is not None:
        raise UserError(f"{root} has camera poses already, in {model}: move them away to estimate them anew")
    folder = root / "images"
    photos = list_photos(folder)
    if len(photos) < MIN_PHOTOS:
        raise UserError(
            f"{folder} has {len(photos)} photographs ({', '.join(PHOTO_SUFFIXES)}): expected {MIN_PHOTOS} or more that "
            f"overlap; add photographs"
        )
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".sfm_") as work:
            models = _run_colmap(folder, photos, pathlib.Path(work), max_size, report)
            if not models:
                raise UserError(
                    f"no camera poses were found for the {len(photos)} photographs of {folder}: expected a still scene "
                    f"with texture, from many places, each part in {MIN_PHOTOS} photographs or more; for large blur "
                    f"try a smaller max_size (now {max_size} px)"
                )
            best = max(range(len(models)), key=lambda i: len(models[i][0]))
            (root / "sparse").mkdir(exist_ok=True)
            (pathlib.Path(work) / str(best)).rename(root / "sparse" / "0")
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read or written ({error.strerror}): expected a folder that you may write; "
            f"change its permissions, or copy the capture to another place"
        ) from error
    posed_names, num_points, error_px = models[best]
    lost_names = tuple(name for name in photos if name not in set(posed_names))
    return Reconstruction(root / "sparse" / "0", tuple(posed_names), lost_names, num_points, error_px)


def _run_colmap(
    folder: pathlib.Path,
    photos: dict[str, pathlib.Path],
    work: pathlib.Path,
    max_size: int,
    report: Callable[[str], None],
) -> list[tuple[list[str], int, float]]:
    """Writes models to work/0, work/1 ... Returns (names with a pose, number of points, mean error in px) of each."""
    database = str(work / "database.db")
    by_size = collections.defaultdict(list)
    for name, path in photos.items():
        by_size[read_photo_size(path)].append(name)
    for (width, height), names in by_size.items():
        report(f"features of {len(names)} photographs of {width} x {height} px")
        _call("extract_features", database, str(folder), names, max_size)
    longest = max(max(size) for size in by_size)
    tolerance = max(1.0, longest / max_size)  # 1 px of the copies with the features, in px of the photographs
    report(f"matches between {math.comb(len(photos), 2)} pairs")
    _call("match_features", database, tolerance)
    report("cameras and points")
    return _call("map_incrementally", database, str(folder), str(work), tolerance)


def describe(reconstruction: Reconstruction) -> str:
    """Returns one line for the user."""
    num_posed, num_lost = len(reconstruction.posed_names), len(reconstruction.lost_names)
    without = f" (without: {name_some(reconstruction.lost_names)})" if num_lost else ""
    return (
        f"{num_posed} of {num_posed + num_lost} photographs have a pose{without}, {reconstruction.num_points} points, "
        f"{reconstruction.error_px:.2f} px off on average: {reconstruction.model}"
    )


def _call(operation: str, *arguments: Any) -> Any:
    try:
        return client.call(operation, *arguments, work_s=_WORK_S)
    except RuntimeError as error:
        raise UserError(f"COLMAP could not estimate the cameras: {error}") from error
