"""The photographs of a scene's folder, and which of them belongs to which pose."""

import contextlib
import os
import pathlib
import stat
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from bags_jax.errors import UserError, escape

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")


def list_photos(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns every picture below a folder, keyed by its path relative to the folder, sorted. {} if there is no folder.

    Hidden files and folders are skipped: macOS leaves ._000.jpg beside 000.jpg, other programs leave thumbnails. A folder
    that is reached on several ways, by links, is listed once.

    Raises:
      UserError: a pipe or device with the name of a picture, or a link that leads to itself.
      PermissionError: the folder or a folder below it may not be read.
    """
    photos, walked = {}, set()
    for parent, folder_names, file_names in os.walk(folder, onerror=_raise_if_forbidden, followlinks=True):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in walked:  # a link to a folder that was walked: links may form a loop
            folder_names.clear()
            continue
        walked.add((place.st_dev, place.st_ino))
        folder_names[:] = sorted(name for name in folder_names if not name.startswith("."))
        for file_name in file_names:
            path = pathlib.Path(parent, file_name)
            if is_photo(path):
                _check_kind(path)
                photos[path.relative_to(folder).as_posix()] = path
    return dict(sorted(photos.items()))


def _check_kind(path: pathlib.Path) -> None:
    """Raises UserError for a name that is no UTF-8, and for a pipe or device, which could be read forever.

    A link to nothing is found when it is read.
    """
    if not str(path).isascii() and any("\ud800" <= letter <= "\udfff" for letter in path.name):
        raise UserError(f"the name of {path} is no UTF-8, which the files of poses could not say: rename it")
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path} is a pipe, a device or a socket: expected a picture; remove it")


def is_photo(path: pathlib.Path) -> bool:
    """True for the name of a picture that is not hidden."""
    return not path.name.startswith(".") and path.suffix.lower() in PHOTO_SUFFIXES


def _raise_if_forbidden(error: OSError) -> None:
    """Raises if os.walk may not list a folder. A folder that does not exist is an empty one."""
    if isinstance(error, PermissionError):
        raise error


def find_photo_folder(root: pathlib.Path, factor: int) -> pathlib.Path:
    """Returns the folder of a scene's photographs: images/, or images_{factor}/ if only that folder has pictures.

    Raises:
      UserError: neither folder holds a picture.
    """
    candidates = [root / "images"] + ([root / f"images_{factor}"] if factor > 1 else [])
    for folder in candidates:
        if list_photos(folder):
            return folder
    names = " and ".join(f"{folder.name}/" for folder in candidates)
    raise UserError(
        f"{root} has camera poses but no photographs: {names} {'is' if len(candidates) == 1 else 'are'} missing or "
        f"empty; put the pictures ({', '.join(PHOTO_SUFFIXES)}) into {candidates[0]}"
    )


def match_photos(names: Sequence[str], file_names: Iterable[str]) -> dict[str, str]:
    """Returns the file name that belongs to each name; names without a file are left out.

    A name matches the same file name, else one with another suffix (000.png in a COLMAP model, 000.jpg on disk). If no
    name matches, folders are ignored, because folders get renamed. If some match, they are not: cam1/000.png must not
    replace a lost cam0/000.png. The encoding of accents (macOS separates them from their letters) and the case of the
    suffix do not count.

    Raises:
      UserError: a name matches several files, or several names match one file.
    """
    file_names = list(file_names)
    exact = set(file_names)
    by_name, by_path = _group(file_names, _normalize), _group(file_names, _strip_suffix)
    pairs: dict[str, str] = {}
    for name in names:
        same = [name] if name in exact else by_name.get(_normalize(name)) or by_path.get(_strip_suffix(name), [])
        if len(same) > 1:
            raise UserError(f"{name} could be any of the files {name_some(same)}: keep one of them")
        if same:
            pairs[name] = same[0]
    if not pairs:
        by_stem = _group(file_names, _strip_folder_and_suffix)
        pairs = {name: same[0] for name in names if len(same := by_stem.get(_strip_folder_and_suffix(name), [])) == 1}
    for file_name, sharers in _group(list(pairs), pairs.__getitem__).items():
        if len(sharers) > 1:
            raise UserError(
                f"{name_some(sharers)} all match the one file {file_name}: expected one file for each pose; "
                f"add the missing files, or remove the surplus poses"
            )
    return pairs


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """Returns the first few names, for a message of one line."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return escape(", ".join(names[:limit])) + more


def describe_unpaired(poses_without_file: Sequence[str], files_without_pose: Sequence[str]) -> tuple[str, ...]:
    """Returns a note for the user on the poses left out, and a note on the photographs left out."""
    notes = []
    if poses_without_file:
        notes.append(f"{len(poses_without_file)} poses have no photograph, left out: {name_some(poses_without_file)}")
    if files_without_pose:
        notes.append(f"{len(files_without_pose)} photographs have no pose, left out: {name_some(files_without_pose)}")
    return tuple(notes)


def _group(names: Sequence[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _normalize(name: str) -> str:
    return _strip_suffix(name) + pathlib.PurePosixPath(name).suffix.lower()


def _strip_suffix(name: str) -> str:
    return unicodedata.normalize("NFC", pathlib.PurePosixPath(name).with_suffix("").as_posix()) if name else name


def _strip_folder_and_suffix(name: str) -> str:
    return pathlib.PurePosixPath(_strip_suffix(name)).name
