"""Photographs: finding the files, pairing them with poses, decoding and downscaling them."""

import dataclasses
import os
import pathlib
import threading
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from bags_jax.data.area import average_areas
from bags_jax.errors import UserError

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
_EXIF_ORIENTATION = 0x0112
_DECODE_THREADS = 2  # decoding releases the GIL; more threads only cost memory
_ONE_AT_A_TIME = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Lens:
    """The camera behind a photograph, in the words of COLMAP."""

    model: str  # name of COLMAP's camera model
    width: int  # px, of the picture that params belong to (the photograph may be a resized copy)
    height: int  # px
    params: tuple[float, ...]  # in COLMAP's order, px, pixel centres at +0.5


@dataclasses.dataclass(frozen=True)
class Capture:
    """What a format's files say about V posed photographs, before any pixel is read."""

    names: tuple[str, ...]  # sorted
    files: tuple[pathlib.Path, ...]
    viewmats: Float[np.ndarray, "V 4 4"]  # cam_from_world, OpenCV axes, scene units
    lenses: tuple[Lens, ...]
    points: Float[np.ndarray, "P 3"]  # world frame
    point_colors: Float[np.ndarray, "P 3"]  # sRGB in [0, 1]
    test_names: frozenset[str] | None = None  # held-out views if the files name them; None: the published rule decides
    notes: tuple[str, ...] = ()
    depths: Float[np.ndarray, "V 2"] | None = None  # nearest and farthest that each view sees, scene units


def list_photos(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every picture below a folder, keyed by its path relative to it, sorted; {} if there is no such folder.

    Raises:
      PermissionError: the folder or one below it may not be read.
    """
    photos = {}
    for parent, folder_names, file_names in os.walk(folder, onerror=_raise_if_forbidden, followlinks=True):
        # macOS leaves ._000.jpg beside 000.jpg, others thumbnails in .folders: what is hidden is no photograph.
        folder_names[:] = [name for name in folder_names if not name.startswith(".")]
        for file_name in file_names:
            path = pathlib.Path(parent, file_name)
            if not file_name.startswith(".") and path.suffix.lower() in PHOTO_SUFFIXES:
                photos[path.relative_to(folder).as_posix()] = path
    return dict(sorted(photos.items()))


def find_photo_folder(root: pathlib.Path, factor: int) -> pathlib.Path:
    """The folder with the photographs of a COLMAP or LLFF scene: images/, or images_{factor}/ where only that exists.

    Raises:
      UserError: neither holds a picture.
    """
    candidates = [root / "images"] + ([root / f"images_{factor}"] if factor > 1 else [])
    for folder in candidates:
        if list_photos(folder):
            return folder
    names = " and ".join(f"{folder.name}/" for folder in candidates)
    raise UserError(
        f"{root} has camera poses but no photographs: {names} {'is' if len(candidates) == 1 else 'are'} missing or empty; "
        f"put the pictures ({', '.join(PHOTO_SUFFIXES)}) into {candidates[0]}"
    )


def match_photos(wanted: Sequence[str], available: Iterable[str]) -> dict[str, str]:
    """Pairs names with files: by name, else without the suffix; without the folder only if no name is found with it.

    COLMAP models often outlive their pictures' format (000.png in the model, 000.jpg on disk), and folders' names. But
    where one folder is right all are: cam1/000.png must not stand in for a lost cam0/000.png. Names may differ in how
    accents are encoded (macOS separates them from their letters) and in the case of the suffix.

    Returns:
      The available name of each wanted one; wanted names without a file are left out.
    Raises:
      UserError: the pairing is ambiguous.
    """
    available = list(available)
    exact = set(available)
    by_name, by_path = _group(available, _loosely), _group(available, _without_suffix)
    pairs: dict[str, str] = {}
    for name in wanted:
        same = [name] if name in exact else by_name.get(_loosely(name)) or by_path.get(_without_suffix(name), [])
        if len(same) > 1:
            raise UserError(f"{name} could be any of the files {name_some(same)}: keep one of them")
        if same:
            pairs[name] = same[0]
    if not pairs:
        by_stem = _group(available, _bare_stem)
        pairs = {name: same[0] for name in wanted if len(same := by_stem.get(_bare_stem(name), [])) == 1}
    takers = _group(list(pairs), lambda name: pairs[name])
    for file_name, names in takers.items():
        if len(names) > 1:
            raise UserError(f"{name_some(names)} all match the one file {file_name}: one file for each pose is needed")
    return pairs


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, for a message of one line."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def pairing_notes(poses_without_file: Sequence[str], files_without_pose: Sequence[str]) -> tuple[str, ...]:
    """One line for each kind of leftover."""
    notes = []
    if poses_without_file:
        notes.append(f"{len(poses_without_file)} poses have no photograph, left out: {name_some(poses_without_file)}")
    if files_without_pose:
        notes.append(f"{len(files_without_pose)} photographs have no pose, left out: {name_some(files_without_pose)}")
    return tuple(notes)


def photo_size(path: pathlib.Path) -> tuple[int, int]:
    """(width, height) in px of the stored pixels, read from the header alone.

    Raises:
      UserError: not a picture.
    """
    with _open(path) as photo:
        width, height = photo.size
        # PIL reports a TIFF as it would be after applying its EXIF orientation; here that is never applied.
        turned = photo.format == "TIFF" and photo.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def read_photos(
    files: Sequence[pathlib.Path],
    *,
    root: pathlib.Path,
    camera_sizes: Sequence[tuple[int, int]],
    factor: int = 1,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[tuple[UInt8[np.ndarray, "_H _W 3"], ...], tuple[str, ...]]:
    """Decodes photographs at 1 / factor of their size.

    A folder images_{factor}/ beside images/ (the same for other folder names) is used if it holds the same number of
    pictures, under the same names up to the suffix, factor times smaller than images/ or than their cameras; otherwise
    areas of images/ are averaged. Where there is only images_{factor}/, it is used as it is.

    Args:
      files: full-size photographs.
      root: the scene's folder.
      camera_sizes: (width, height) in px of each photograph's camera.
      background: sRGB in [0, 1], put behind transparent pixels (blended in sRGB, as is the convention).
    Returns:
      The images, sRGB, and notes for the user. EXIF orientation is not applied (COLMAP does not either), only noted.
    Raises:
      UserError: a file is not a picture, or factor leaves no pixel of it.
    """
    sources, notes = _find_downscaled(dict(zip(files, camera_sizes, strict=True)), root, factor)

    def decode(source: tuple[pathlib.Path, int]) -> tuple[np.ndarray, int]:
        return _decode(*source, background)

    with futures.ThreadPoolExecutor(_DECODE_THREADS) as pool:
        decoded = list(pool.map(decode, sources))
    turned = [path.name for (path, _), (_, orientation) in zip(sources, decoded) if orientation != 1]
    if turned:
        notes.append(
            f"EXIF orientation is ignored, as COLMAP does, in {len(turned)} photographs: {name_some(turned)}; if they "
            f"come out turned, rotate the pixels and run COLMAP again"
        )
    return tuple(image for image, _ in decoded), tuple(notes)


def _raise_if_forbidden(error: OSError) -> None:
    """os.walk passes over what it cannot list: right for a folder that is not there, not for one it may not read."""
    if isinstance(error, PermissionError):
        raise error


def _loosely(name: str) -> str:
    return _without_suffix(name) + pathlib.PurePosixPath(name).suffix.lower()


def _without_suffix(name: str) -> str:
    return unicodedata.normalize("NFC", pathlib.PurePosixPath(name).with_suffix("").as_posix()) if name else name


def _bare_stem(name: str) -> str:
    return pathlib.PurePosixPath(_without_suffix(name)).name


def _group(names: Sequence[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _find_downscaled(
    camera_sizes: dict[pathlib.Path, tuple[int, int]], root: pathlib.Path, factor: int
) -> tuple[list[tuple[pathlib.Path, int]], list[str]]:
    """The file to decode in place of each photograph, and the factor that is left to apply to it."""
    sources = {path: (path, factor) for path in camera_sizes}
    notes = []
    in_root = [path for path in camera_sizes if path.is_relative_to(root) and len(path.relative_to(root).parts) > 1]
    tops = _group([path.relative_to(root).as_posix() for path in in_root], lambda name: name.split("/")[0])
    for top, names in tops.items() if factor > 1 else ():
        if top == f"images_{factor}":  # images/ is missing: these are already small
            sources.update({root / name: (root / name, 1) for name in names})
            odd = [
                name[len(top) + 1 :] for name in names if not _is_shrunk(root / name, camera_sizes[root / name], factor)
            ]
            if odd:
                notes.append(
                    f"{len(odd)} pictures of {top}/ are not {factor} times smaller than their cameras, but used as "
                    f"they are: {name_some(odd)}; rename {top}/ to images/ to have them resized"
                )
            continue
        small_folder = root / f"{top}_{factor}"
        if not small_folder.is_dir():
            continue
        small, num_full = list_photos(small_folder), len(list_photos(root / top))
        inner = [name[len(top) + 1 :] for name in names]
        pairs = match_photos(inner, small) if len(small) == num_full else {}
        if len(pairs) < len(inner):
            notes.append(f"{small_folder.name}/ does not hold the same pictures as {top}/: resized {top}/ instead")
            continue
        twins = {root / top / name: small[pairs[name]] for name in inner}
        odd = [
            path.name
            for path, twin in twins.items()
            if not (_is_shrunk(twin, camera_sizes[path], factor) or _is_shrunk(twin, photo_size(path), factor))
        ]
        if odd:
            notes.append(
                f"{len(odd)} pictures of {small_folder.name}/ are not {factor} times smaller than those of {top}/: "
                f"{name_some(odd)}; resized {top}/ instead"
            )
            continue
        sources.update({path: (twin, 1) for path, twin in twins.items()})
    return list(sources.values()), notes


def _is_shrunk(path: pathlib.Path, size: tuple[int, int], factor: int) -> bool:
    """Whether a picture has 1 / factor of a (width, height), up to rounding, or the 2 % that cropping may cost."""
    return all(
        abs(small - full / factor) <= 1 + 0.02 * full / factor
        for small, full in zip(photo_size(path), size, strict=True)
    )


def _open(path: pathlib.Path) -> Image.Image:
    """Opens a picture of any size: PIL guards servers against huge uploads, but these files are the user's own."""
    with _ONE_AT_A_TIME:  # the limit is one for the whole process
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        except PermissionError:
            raise
        except Exception as error:  # PIL's readers raise far more than OSError on damaged headers
            raise _not_a_picture(path, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _not_a_picture(path: pathlib.Path, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"cannot read {path} as a picture ({reason}): replace the file, or remove it")


def _decode(path: pathlib.Path, factor: int, background: tuple[float, float, float]) -> tuple[np.ndarray, int]:
    """One picture as uint8 [H, W, 3] and its EXIF orientation (not applied)."""
    with _open(path) as photo:
        try:
            exif = photo.getexif()
            orientation = exif.get(_EXIF_ORIENTATION, 1)
            exif[_EXIF_ORIENTATION] = 1  # PIL would turn a TIFF by itself while loading it
            photo.load()
            rgb = _to_rgb(photo, background)
        except Exception as error:  # as in _open: damaged data raises anything
            raise _not_a_picture(path, error) from error
    return _shrink(rgb, factor, path) if factor > 1 else np.array(rgb), orientation


def _to_rgb(photo: Image.Image, background: tuple[float, float, float]) -> Image.Image:
    if photo.mode == "F":
        raise ValueError("floating point pixels have no known range; 8 or 16 bit ones are expected")
    if photo.mode.startswith("I"):  # 16 bit grayscale: PIL's own conversion would clip it at 255
        values = np.asarray(photo).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32 bit pixels; 8 or 16 bit ones are expected")
        photo = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if not photo.has_transparency_data:
        return photo.convert("RGB")
    rgba = np.asarray(photo.convert("RGBA"), np.float32)
    alphas = rgba[..., 3:] / 255
    blended = rgba[..., :3] * alphas + 255 * np.asarray(background, np.float32) * (1 - alphas)
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def _shrink(photo: Image.Image, factor: int, path: pathlib.Path) -> np.ndarray:
    width, height = photo.size
    small = (round(height / factor), round(width / factor))
    if min(small) < 1:
        raise UserError(f"factor {factor} leaves no pixel of {path} ({width} x {height}): use a smaller factor")
    if width % factor == 0 and height % factor == 0:
        return np.array(photo.reduce(factor))  # the same average, much quicker
    return average_areas(np.asarray(photo), *small)
