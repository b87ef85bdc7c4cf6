"""From a folder of photographs or a video to a capture: DIR/images, upright, and DIR/sparse/0, the poses."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import tqdm

from bags_jax.atomic import write_atomic
from bags_jax.data.formats import FORMATS, find_format
from bags_jax.data.pairing import list_photos, name_some
from bags_jax.data.valid_pixels import FOLDER as MASK_FOLDER
from bags_jax.errors import UserError
from bags_jax.sfm import frame_choice, video
from bags_jax.sfm.masks import copy_masks
from bags_jax.sfm.photographs import HEIC_SUFFIXES, SUFFIXES, copy_upright, list_sources, rename
from bags_jax.sfm.reconstruct import MIN_PHOTOS, Reconstruction, Report, reconstruct
from bags_jax.sfm.temporary import open_temporary

SOURCE_FILE = "sfm.json"  # of a capture: what its images/ were made from
MIN_SECONDS = 3.0
_MIN_PATH = 0.15  # share of the longer side; a camera on a tripod moves the picture by less
_WIDE = 0.2  # path between kept frames, share of the longer side, from which on the user is warned


@dataclasses.dataclass(frozen=True)
class Source:
    """What the user gave."""

    path: pathlib.Path
    photos: dict[str, pathlib.Path]  # {}: a video file

    @property
    def is_video(self) -> bool:
        """True for a video file."""
        return not self.photos

    def describe(self) -> dict[str, str | int]:
        """Returns the path of the source and its size, which SOURCE_FILE keeps: another source has others."""
        size = self.path.stat().st_size if self.is_video else len(self.photos)
        return {"source": str(self.path.resolve()), "bytes" if self.is_video else "photographs": size}


def has_poses(root: pathlib.Path) -> bool:
    """True if a folder is a capture in a format that load_scene reads."""
    if not root.is_dir():
        return False
    try:
        return find_format(root, "auto") in FORMATS
    except UserError:
        return False


def make_capture(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    max_size: int = 800,
    num_frames: int = 0,
    report: Report = lambda line: None,
    has_bar: bool = False,
) -> Reconstruction:
    """Makes a capture with poses of a folder of photographs, or of a video.

    A capture that an earlier call has begun goes on: its images/ are used if they were made from the same source.

    Args:
      path: the folder (photographs in images/, or directly in it), or the video file; ~ is expanded.
      output: the capture's folder; None: `path` itself, which must have images/.
      max_size: see `reconstruct`.
      num_frames: frames to keep of a video; 0: 60 to 150, by the length of the camera's path.
      report: receives one line for each step of the work.
      has_bar: shows progress bars.
    Raises:
      UserError: bad input; nothing is overwritten.
    """
    path = pathlib.Path(path).expanduser()
    output = None if output is None else pathlib.Path(output).expanduser()
    source = find_source(path, output)
    root = _choose_root(source, output)
    if has_poses(root):
        raise UserError(f"{root} has camera poses already: nothing was changed; choose another --output")
    is_in_place = not source.is_video and root / "images" == _find_photo_folder(source.path)
    if is_in_place:
        _refuse_heic(source)
    else:
        try:
            fill(source, root, num_frames=num_frames, report=report, has_bar=has_bar)
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be read or written ({error.strerror}): change its permissions, free space on "
                "the disk, or choose another --output"
            ) from error
    return reconstruct(root, max_size=max_size, is_video=source.is_video, report=report, has_bar=has_bar)


def find_source(path: pathlib.Path, output: pathlib.Path | None = None) -> Source:
    """Finds the photographs or the video that a path names.

    Args:
      output: a folder whose contents are no source, even inside `path`.
    Raises:
      UserError: there is no such path, it is no video, or the folder has fewer than 3 photographs.
    """
    if path.is_file():
        if video.is_video(path):
            return Source(path, {})
        one = "is one photograph" if path.suffix.lower() in SUFFIXES else "is no video"
        raise UserError(
            f"{path} {one}: expected a folder of photographs, or a video file ({', '.join(video.VIDEO_SUFFIXES)})"
        )
    if not path.is_dir():
        raise UserError(f"{path} does not exist: expected a folder of photographs, or a video file; correct the path")
    try:
        folder = _find_photo_folder(path)
        found = list_sources(folder)
        if folder == path:  # the masks lie beside the photographs
            found = {name: file for name, file in found.items() if pathlib.PurePath(name).parts[0] != MASK_FOLDER}
    except PermissionError as error:
        raise UserError(
            f"cannot read {error.filename} ({error.strerror}): change its permissions, or copy it"
        ) from error
    inside = (
        output is not None and output.resolve() != path.resolve() and output.resolve().is_relative_to(path.resolve())
    )
    if inside and output is not None:
        found = {name: file for name, file in found.items() if not file.resolve().is_relative_to(output.resolve())}
    if len(found) < MIN_PHOTOS:
        films = sorted(file.name for file in path.iterdir() if video.is_video(file))
        hint = f"give the path of the video ({path / films[0]})" if films else "add photographs that overlap"
        raise UserError(
            f"{path} has {len(found)} photographs ({', '.join(SUFFIXES)}): expected {MIN_PHOTOS} or more; {hint}"
        )
    return Source(path, found)


def fill(source: Source, root: pathlib.Path, *, num_frames: int, report: Report, has_bar: bool) -> None:
    """Writes images/ of a capture, whole or not at all, and the file that says from what.

    Raises:
      UserError: the folder holds other photographs, or the source cannot be used.
      OSError: the folder cannot be written.
    """
    images, note = root / "images", root / SOURCE_FILE
    if list_photos(images):
        if not note.is_file() or json.loads(note.read_text()) != source.describe():
            raise UserError(
                f"{images} holds photographs that were not made from {source.path}: nothing was changed; choose another "
                "--output, or move them away"
            )
        report(f"photographs of an earlier call are used: {images}")
        return
    footage, chosen = _watch(source.path, num_frames, report, has_bar) if source.is_video else (None, np.zeros(0, int))
    root.mkdir(parents=True, exist_ok=True)
    with open_temporary(root) as temporary:
        unfinished = temporary / "images"
        unfinished.mkdir()
        with _bar("photographs", len(source.photos) or len(chosen), "photo", has_bar) as bar:
            if footage is not None:
                video.write_frames(footage, footage.numbers[chosen], unfinished, report=bar.update)
                notes = _describe(footage, chosen)
            else:
                notes = [f"note: {line}" for line in copy_upright(source.photos, unfinished, report=bar.update)]
                renamed = {name: (file, rename(name)) for name, file in source.photos.items()}
                if num_masks := copy_masks(source.path, renamed, temporary / MASK_FOLDER):
                    notes.append(f"note: {num_masks} masks of {source.path / MASK_FOLDER} were copied")
        for line in notes:
            report(line)
        write_atomic(note, (json.dumps(source.describe(), indent=2) + "\n").encode())
        if images.is_dir():
            images.rmdir()  # empty; else OSError
        if (temporary / MASK_FOLDER).is_dir():
            (temporary / MASK_FOLDER).rename(root / MASK_FOLDER)
        unfinished.rename(images)


def _watch(file: pathlib.Path, num_frames: int, report: Report, has_bar: bool) -> tuple[video.Footage, np.ndarray]:
    """Returns the video, measured, and the indices of the frames to keep.

    Raises:
      UserError: the video cannot be decoded, is too short, or its camera stands still.
    """
    num_promised, fps = video.read_header(file)
    if 0 < num_promised < MIN_SECONDS * fps:
        raise _make_short_error(file, num_promised / fps)
    report(f"sharpness and motion of the frames of {file}")
    with _bar("frames", num_promised, "frame", has_bar) as bar:
        footage = video.watch(file, report=bar.update)
    if footage.seconds < MIN_SECONDS:
        raise _make_short_error(file, footage.seconds)
    if footage.path[-1] < _MIN_PATH:
        raise UserError(
            f"the camera of {file} stands still (the picture moves by {footage.path[-1]:.0%} of its width in "
            f"{footage.seconds:.0f} s), so there is no parallax: film while you walk around the subject"
        )
    num = num_frames or frame_choice.count_frames(footage.path)
    return footage, frame_choice.choose_frames(footage.sharpness, footage.path, num)


def _describe(footage: video.Footage, chosen: np.ndarray) -> list[str]:
    """Returns notes for the user: the number of kept frames, and advice on the video, one line each."""
    gain = np.median(footage.sharpness[chosen]) / max(float(np.median(footage.sharpness)), 1e-9)
    gap = footage.path[-1] / max(len(chosen), 1)
    size = f"{footage.width} x {footage.height} px"
    kept = (
        f"{len(chosen)} of {footage.num_frames} frames are kept, {size}, {gain:.2f} times as sharp as the median frame"
    )
    lines = [f"{kept}; the picture moves {gap:.1%} of its width between them"]
    if footage.num_frames < 0.98 * footage.num_promised:
        lines.append(
            f"note: only {footage.num_frames} of {footage.num_promised} frames could be decoded: the file may be damaged"
        )
    if gap > _WIDE:
        lines.append("note: the camera moves far between kept frames: film slower, or keep more with --frames")
    return lines


def _make_short_error(file: pathlib.Path, seconds: float) -> UserError:
    return UserError(
        f"{file} is {seconds:.1f} s long: expected {MIN_SECONDS:.0f} s or more, better 10 to 60 s; film slowly while you "
        "walk around the subject"
    )


def _choose_root(source: Source, output: pathlib.Path | None) -> pathlib.Path:
    if output is not None:
        return output
    if source.is_video or _find_photo_folder(source.path) == source.path:
        name = source.path.with_suffix("").name
        raise UserError(
            f"--output is missing: expected a folder for the capture that is made of {source.path}, such as "
            f"--output={name}_capture"
        )
    return source.path


def _find_photo_folder(folder: pathlib.Path) -> pathlib.Path:
    return folder / "images" if (folder / "images").is_dir() and list_sources(folder / "images") else folder


def _refuse_heic(source: Source) -> None:
    heic = [name for name, file in source.photos.items() if file.suffix.lower() in HEIC_SUFFIXES]
    if heic:
        raise UserError(
            f"{len(heic)} photographs are HEIC, which training does not read: {name_some(heic)}; name a folder for the "
            "converted capture with --output"
        )


def _bar(name: str, total: int, unit: str, has_bar: bool) -> tqdm.tqdm:
    return tqdm.tqdm(
        total=total or None, desc=name, unit=unit, dynamic_ncols=True, mininterval=0.5, disable=not has_bar
    )
