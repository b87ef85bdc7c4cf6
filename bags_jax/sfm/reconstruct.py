"""Structure from motion: cameras and points of a folder of photographs, by COLMAP (Schoenberger and Frahm, CVPR 2016)."""

import collections
import dataclasses
import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from bags_jax.data.colmap import find_model
from bags_jax.data.images import PHOTO_SUFFIXES, list_photos, name_some, photo_size
from bags_jax.errors import UserError
from bags_jax.sfm.client import ask

LEAST_PHOTOS = 3
_WORK_S = 7 * 86400.0  # hundreds of photographs take hours: only who waits can tell that it is too long


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What was found out about a capture's cameras."""

    model: pathlib.Path  # COLMAP's model, which load_scene reads
    posed: tuple[str, ...]  # names of the photographs whose pose was found
    lost: tuple[str, ...]  # of the others
    num_points: int
    error_px: float  # mean distance between a point's projection and its feature, px of the photographs


def reconstruct(
    root: str | os.PathLike[str], *, max_size: int = 800, report: Callable[[str], None] = lambda line: None
) -> Reconstruction:
    """Writes root/sparse/0, a COLMAP model of the photographs in root/images.

    Photographs of one size are taken for those of one camera with one focal length. Of several models that COLMAP could not
    connect, the one with the most photographs is kept.

    Args:
      root: the capture's folder; ~ is expanded.
      max_size: the longer side, in px, at which features are looked for. Smaller copies are blurred by fewer pixels.
      report: is told what is being done.
    Raises:
      UserError: there is a model already, there are too few photographs, no poses are found for them, or a
        file cannot be read or written.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is no folder: expected the one that holds images/")
    if (model := find_model(root)) is not None:
        raise UserError(f"{root} has camera poses already, in {model}: move them away to estimate them anew")
    folder = root / "images"
    photos = list_photos(folder)
    if len(photos) < LEAST_PHOTOS:
        raise UserError(
            f"{folder} has {len(photos)} photographs ({', '.join(PHOTO_SUFFIXES)}): expected {LEAST_PHOTOS} or more that overlap"
        )
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".sfm_") as work:
            found = _run_colmap(folder, photos, pathlib.Path(work), max_size, report)
            if not found:
                raise UserError(
                    f"no camera poses were found for the {len(photos)} photographs of {folder}: expected a still scene with "
                    f"texture, from many places, each part in {LEAST_PHOTOS} photographs or more; where blur is large, try a "
                    f"smaller size for the features (now {max_size} px)"
                )
            best = max(range(len(found)), key=lambda i: len(found[i][0]))
            (root / "sparse").mkdir(exist_ok=True)
            (pathlib.Path(work) / str(best)).rename(root / "sparse" / "0")
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read or written ({error.strerror}): expected a capture of yours"
        ) from error
    posed, num_points, error_px = found[best]
    lost = tuple(name for name in photos if name not in set(posed))
    return Reconstruction(root / "sparse" / "0", tuple(posed), lost, num_points, error_px)


def _run_colmap(
    folder: pathlib.Path,
    photos: dict[str, pathlib.Path],
    work: pathlib.Path,
    max_size: int,
    report: Callable[[str], None],
) -> list[tuple[list[str], int, float]]:
    """Writes models to work/0, work/1 ...; of each the names with a pose, its number of points, their mean error in px."""
    database = str(work / "database.db")
    by_size = collections.defaultdict(list)
    for name, path in photos.items():
        by_size[photo_size(path)].append(name)
    for (width, height), names in by_size.items():
        report(f"features of {len(names)} photographs of {width} x {height} px")
        _ask("extract_features", database, str(folder), names, max_size)
    longest = max(max(size) for size in by_size)
    tolerance = max(1.0, longest / max_size)  # a px of where features are looked for, in px of the photographs
    report(f"matches between {math.comb(len(photos), 2)} pairs")
    _ask("match_features", database, tolerance)
    report("cameras and points")
    return _ask("map_incrementally", database, str(folder), str(work), tolerance)


def describe(found: Reconstruction) -> str:
    """One line for who waits."""
    lost = f" (without: {name_some(found.lost)})" if found.lost else ""
    total = len(found.posed) + len(found.lost)
    return (
        f"{len(found.posed)} of {total} photographs have a pose{lost}, {found.num_points} points, "
        f"{found.error_px:.2f} px off on average: {found.model}"
    )


def _ask(operation: str, *arguments: Any) -> Any:
    try:
        return ask(operation, *arguments, work_s=_WORK_S)
    except RuntimeError as error:
        raise UserError(f"COLMAP could not estimate the cameras: {error}") from error
