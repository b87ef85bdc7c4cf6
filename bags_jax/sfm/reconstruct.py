"""Structure from motion: camera poses and points of photographs, by COLMAP (Schoenberger and Frahm, CVPR 2016)."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tqdm
from jaxtyping import Int

from bags_jax.data.colmap import find_model
from bags_jax.data.pairing import PHOTO_SUFFIXES, list_photos, name_some
from bags_jax.errors import UserError
from bags_jax.sfm import client
from bags_jax.sfm.appearance import MAX_FEATURES, describe_photographs
from bags_jax.sfm.lost import Pair, describe_losses, explain_losses, is_without_parallax
from bags_jax.sfm.masks import write_masks
from bags_jax.sfm.pairs import (
    MAX_EXHAUSTIVE,
    convert_to_metres,
    find_groups,
    order_by_block,
    pair_all,
    pair_frames,
    pair_groups,
    pair_many,
)
from bags_jax.sfm.photographs import CameraGroup, describe_cameras, group_by_camera
from bags_jax.sfm.temporary import open_temporary

MIN_PHOTOS = 3
_WORK_S = 7 * 86400.0  # no practical limit: many photographs take hours, and the user can interrupt
_EXTRACT_AT_ONCE, _MATCH_AT_ONCE, _BLOCK = 8, 128, 16  # photographs and pairs of one request: steps of the progress bar
_FEW_POINTS = 5  # of a photograph; a plane gives hundreds, a camera that only turns none
_GPS_SHARE = 0.9  # of the photographs, from which on their GPS positions are used
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The result of structure from motion."""

    model: pathlib.Path  # folder of the COLMAP model, which load_scene reads
    posed_names: tuple[str, ...]  # photographs with a pose
    lost: dict[str, tuple[str, ...]]  # photographs without a pose, by reason
    num_points: int
    error_px: float  # mean distance between a point's projection and its feature, px of the photographs
    num_pairs: int  # pairs that were matched
    num_known_focals: int  # photographs whose EXIF says the focal length

    @property
    def lost_names(self) -> tuple[str, ...]:
        """Photographs without a pose, sorted."""
        return tuple(sorted(name for names in self.lost.values() for name in names))


@dataclasses.dataclass(frozen=True)
class Work:
    """The photographs of one reconstruction, and the folder of its temporary files."""

    folder: pathlib.Path  # of the photographs
    photos: dict[str, pathlib.Path]
    groups: tuple[CameraGroup, ...]
    temporary: pathlib.Path
    max_size: int
    is_video: bool
    report: Report
    has_bar: bool

    @property
    def database(self) -> str:
        """COLMAP's database."""
        return str(self.temporary / "database.db")

    @property
    def masks(self) -> pathlib.Path:
        """Folder of the masks as COLMAP reads them."""
        return self.temporary / "masks"

    @property
    def tolerance(self) -> float:
        """1 px of the copies that features are extracted from, in px of the photographs."""
        return max(1.0, max(max(group.width, group.height) for group in self.groups) / self.max_size)

    def bar(self, name: str, total: int, unit: str) -> tqdm.tqdm:
        """A progress bar with the remaining time."""
        return tqdm.tqdm(
            total=total, desc=name, unit=unit, dynamic_ncols=True, mininterval=0.5, disable=not self.has_bar
        )


def reconstruct(
    root: str | os.PathLike[str],
    *,
    max_size: int = 800,
    is_video: bool = False,
    report: Report = lambda line: None,
    has_bar: bool = False,
) -> Reconstruction:
    """Writes root/sparse/0, a COLMAP model of the photographs in root/images.

    Photographs of one size, camera model and focal length (by EXIF) share one lens. If COLMAP makes several models that
    it cannot connect, the model with the most photographs is written. Masks in root/masks (white is used, black is left
    out) keep features out of the dark parts.

    Args:
      root: the capture's folder; ~ is expanded.
      max_size: longer side, in px, of the copies that features are extracted from. A smaller copy has less blur in px.
      is_video: the photographs are frames of a video, in the order of their names.
      report: receives one line for each step of the work.
      has_bar: shows progress bars.
    Raises:
      UserError: the folder has a model already, has fewer than 3 photographs, no poses are found, or a file cannot be
        read or written.
    """
    root = pathlib.Path(root).expanduser()
    folder = root / "images"
    photos = _check(root, folder)
    groups = tuple(group_by_camera(photos))
    for note in describe_cameras(groups):
        report(f"note: {note}")
    try:
        with open_temporary(root) as temporary:
            work = Work(folder, photos, groups, temporary, max_size, is_video, report, has_bar)
            write_masks(root, photos, work.masks)
            extract(work)
            num_pairs = match(work)
            pairs = [Pair(*row) for row in _call("read_matches", work.database)]
            models = map_cameras(work)
            best = max(range(len(models)), key=lambda i: len(models[i][0]), default=-1)
            _check_model(work, pairs, models[best][:2] if models else ([], 0))
            found = _call("read_photographs", work.database)
            (root / "sparse").mkdir(exist_ok=True)
            (work.temporary / str(best)).rename(root / "sparse" / "0")
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read or written ({error.strerror}): expected a folder that you may write; "
            f"change its permissions, or copy the capture to another place"
        ) from error
    posed_names, num_points, error_px = models[best]
    lost_names = sorted(photos.keys() - set(posed_names))
    num_features = {name: row[0] for name, row in found.items()}
    others = [model[0] for i, model in enumerate(models) if i != best]
    return Reconstruction(
        model=root / "sparse" / "0",
        posed_names=tuple(posed_names),
        lost=explain_losses(lost_names, num_features, pairs, others),
        num_points=num_points,
        error_px=error_px,
        num_pairs=num_pairs,
        num_known_focals=sum(row[1] for row in found.values()),
    )


def _check(root: pathlib.Path, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the photographs of a capture that has no poses yet."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder: expected the folder that holds images/; correct the path")
    if (model := find_model(root)) is not None:
        raise UserError(f"{root} has camera poses already, in {model}: move them away to estimate them anew")
    photos = list_photos(folder)
    if len(photos) < MIN_PHOTOS:
        raise UserError(
            f"{folder} has {len(photos)} photographs ({', '.join(PHOTO_SUFFIXES)}): expected {MIN_PHOTOS} or more that "
            f"overlap; add photographs"
        )
    return photos


def extract(work: Work) -> None:
    """Writes the features of all photographs to the database, some at a time."""
    for group in work.groups:
        work.report(f"features of {len(group.names)} photographs of {group.width} x {group.height} px")
    with work.bar("features", len(work.photos), "photo") as bar:
        for group in work.groups:
            camera_id = -1
            for names in _split(group.names, _EXTRACT_AT_ONCE):
                camera_id = _call(
                    "extract_features",
                    work.database,
                    str(work.folder),
                    str(work.masks) if work.masks.is_dir() else "",
                    list(names),
                    work.max_size,
                    camera_id,
                )
                bar.update(len(names))


def match(work: Work) -> int:
    """Matches the photographs of the database. Returns the number of pairs."""
    found = _call("read_photographs", work.database)
    names = sorted(found)
    is_small = not work.is_video and len(names) <= MAX_EXHAUSTIVE
    if is_small:
        pairs = pair_all(len(names))
    else:
        features = _call("read_features", work.database, names, MAX_FEATURES)
        descriptors = describe_photographs(features)
        if work.is_video:
            pairs = pair_frames(len(names), descriptors)
        else:
            pairs = pair_many(descriptors, _find_positions([found[name][2] for name in names]))
    work.report(f"matches between {len(pairs)} of {len(names) * (len(names) - 1) // 2} pairs")
    _match(work, names, pairs)
    if is_small:
        return len(pairs)
    index = {name: i for i, name in enumerate(names)}
    rows = [(index[first], index[second]) for first, second, *_ in _call("read_matches", work.database)]
    verified = np.array(rows, int).reshape(-1, 2)
    bridges = _leave_out(pair_groups(verified, descriptors), pairs, len(names))
    if len(bridges):
        num_groups = len(find_groups(len(names), verified))
        work.report(f"matches between {len(bridges)} more pairs, to connect {num_groups} groups")
        _match(work, names, bridges)
    return len(pairs) + len(bridges)


def _leave_out(pairs: Int[np.ndarray, "P 2"], done: Int[np.ndarray, "Q 2"], num: int) -> Int[np.ndarray, "_n 2"]:
    """Returns the pairs of `num` photographs that are not done yet."""
    return pairs[~np.isin(pairs[:, 0] * num + pairs[:, 1], done[:, 0] * num + done[:, 1])]


def _match(work: Work, names: list[str], pairs: Int[np.ndarray, "P 2"]) -> None:
    with work.bar("matches", len(pairs), "pair") as bar:
        for rows in _split(order_by_block(pairs, _BLOCK).tolist(), _MATCH_AT_ONCE):
            some = [(names[first], names[second]) for first, second in rows]
            _call("match_pairs", work.database, some, work.tolerance)
            bar.update(len(some))


def _find_positions(places: Sequence[tuple[float, ...]]) -> np.ndarray | None:
    """Returns positions in metres if nearly all photographs have GPS; those without get the mean."""
    known = [place for place in places if place]
    if len(known) < max(_GPS_SHARE * len(places), 1):
        return None
    mean = tuple(np.mean(known, axis=0))
    return convert_to_metres(np.array([place or mean for place in places], float))


def map_cameras(work: Work) -> list[tuple[list[str], int, float]]:
    """Writes models to work/0, work/1 ... Returns (names with a pose, number of points, mean error in px) of each."""
    work.report("cameras and points")
    with work.bar("cameras", len(work.photos), "photo") as bar:
        arguments = (work.database, str(work.folder), str(work.temporary), work.tolerance)
        return _call("map_incrementally", *arguments, report=lambda count: bar.update(count - bar.n))


def _check_model(work: Work, pairs: Sequence[Pair], model: tuple[list[str], int]) -> None:
    """Raises UserError if the largest model (names, number of points) is none, or one of a camera that only turned."""
    names, num_points = model
    what = f"no camera poses were found for the {len(work.photos)} photographs of {work.folder}"
    is_poor = len(names) < len(work.photos) / 2 or num_points < _FEW_POINTS * len(names)
    if is_poor and is_without_parallax(pairs):
        raise UserError(
            f"{what}: they have no parallax (the camera stood still, or only turned): expected a camera that moves "
            f"through the scene; walk around the subject instead of turning on the spot"
        )
    if len(names) < MIN_PHOTOS or not num_points:
        raise UserError(
            f"{what}: expected a still scene with texture, from many places, each part in {MIN_PHOTOS} photographs or "
            f"more; for large blur try a smaller max_size (now {work.max_size} px)"
        )


def describe(reconstruction: Reconstruction) -> str:
    """Returns the summary for the user: one line, and one for each reason why photographs were lost."""
    num_posed, lost_names = len(reconstruction.posed_names), reconstruction.lost_names
    without = f" (without: {name_some(lost_names)})" if lost_names else ""
    summary = (
        f"{num_posed} of {num_posed + len(lost_names)} photographs have a pose{without}, "
        f"{reconstruction.num_points} points, {reconstruction.error_px:.2f} px off on average: {reconstruction.model}"
    )
    num = reconstruction.num_known_focals
    focals = [f"the focal length of {num} photographs began at that of their EXIF"] if num else []
    return "\n".join([summary, *describe_losses(reconstruction.lost), *focals])


def _split(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _call(operation: str, *arguments: Any, **options: Any) -> Any:
    try:
        return client.call(operation, *arguments, work_s=_WORK_S, **options)
    except RuntimeError as error:
        raise UserError(f"COLMAP could not estimate the cameras: {error}") from error
