"""Photographs: decoding and downscaling."""

import pathlib
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from bags_jax.data.area import average_areas
from bags_jax.data.pairing import list_photos, match_photos, name_some
from bags_jax.errors import UserError

_EXIF_ORIENTATION = 0x0112
_DECODE_THREADS = 2  # decoding releases the GIL; more threads only cost memory
_OPEN_LOCK = threading.Lock()
# Pillow chooses the reader by the content, whatever the suffix: an EPS would start Ghostscript.
# Damaged metadata changes no pixel, and damaged pixels raise: no warning on the way to the one line of an error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")  # JPEG: MPO, the pictures of many phones, too
_MAX_PIXELS = 1 << 29  # of one photograph: 1.6 GB decoded


def read_photo_size(path: pathlib.Path) -> tuple[int, int]:
    """Returns (width, height) in px of the stored pixels, from the header of a picture.

    Raises:
      UserError: not a picture.
    """
    with _open(path) as photo:
        width, height = photo.size
        # PIL swaps the sides of a TIFF by its EXIF orientation, which is never applied here.
        is_swapped = photo.format == "TIFF" and photo.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    return (height, width) if is_swapped else (width, height)


def read_photos(
    files: Sequence[pathlib.Path],
    *,
    root: pathlib.Path,
    camera_sizes: Sequence[tuple[int, int]],
    factor: int = 1,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    keep: Callable[[np.ndarray], np.ndarray] = lambda image: image,
) -> tuple[tuple[UInt8[np.ndarray, "_H _W 3"], ...], tuple[str, ...]]:
    """Decodes photographs at 1 / factor of their size.

    The pictures of images_{factor}/ beside images/ (or of x_{factor}/ beside any folder x/) replace those of images/ if
    the two folders hold the same number of pictures, under the same names up to the suffix, and the small pictures are
    factor times smaller than the large ones or than their cameras. Otherwise areas of the large pictures are averaged.
    Files that are in images_{factor}/ themselves are decoded at their own size.

    Args:
      files: full-size photographs.
      root: the scene's folder.
      camera_sizes: (width, height) in px of each photograph's camera.
      factor: downscale factor, >= 1.
      background: sRGB in [0, 1], put behind transparent pixels (blended in sRGB, as is the convention).
      keep: stores an image as soon as it is decoded: see spool.Spool.
    Returns:
      The images, sRGB, and notes for the user. EXIF orientation is not applied, as in COLMAP; a note names the files.
    Raises:
      UserError: a file is not a picture, or factor leaves no pixel of it.
    """
    sources, notes = _choose_sources(dict(zip(files, camera_sizes, strict=True)), root, factor)

    def decode(source: tuple[pathlib.Path, int]) -> tuple[np.ndarray, int]:
        image, orientation = _decode(*source, background)
        return keep(image), orientation

    with futures.ThreadPoolExecutor(_DECODE_THREADS) as pool:
        decoded = list(pool.map(decode, sources))
    rotated = [path.name for (path, _), (_, orientation) in zip(sources, decoded) if orientation != 1]
    if rotated:
        notes.append(
            f"EXIF orientation is ignored, as COLMAP does, in {len(rotated)} photographs: {name_some(rotated)}; if "
            f"they come out turned, rotate the pixels and run COLMAP again"
        )
    return tuple(image for image, _ in decoded), tuple(notes)


def _choose_sources(
    camera_sizes: dict[pathlib.Path, tuple[int, int]], root: pathlib.Path, factor: int
) -> tuple[list[tuple[pathlib.Path, int]], list[str]]:
    """Returns the file to decode for each photograph with the factor left to apply, and notes for the user."""
    sources = {path: (path, factor) for path in camera_sizes}
    folders: dict[pathlib.Path, list[pathlib.Path]] = {}
    for path in camera_sizes if factor > 1 else ():
        if path.is_relative_to(root) and len(path.relative_to(root).parts) > 1:
            folders.setdefault(root / path.relative_to(root).parts[0], []).append(path)
    notes = []
    for folder, paths in folders.items():
        if folder.name == f"images_{factor}":  # there is no images/
            sources.update({path: (path, 1) for path in paths})
            odd = [
                path.relative_to(folder).as_posix()
                for path in paths
                if not _is_shrunk(path, camera_sizes[path], factor)
            ]
            if odd:
                notes.append(
                    f"{len(odd)} pictures of {folder.name}/ are not {factor} times smaller than their cameras, but "
                    f"used as they are: {name_some(odd)}; rename {folder.name}/ to images/ to have them resized"
                )
            continue
        small_folder = folder.with_name(f"{folder.name}_{factor}")
        if not small_folder.is_dir():
            continue
        copies, problem = _find_small_copies(paths, folder, small_folder, camera_sizes, factor)
        sources.update({path: (copy, 1) for path, copy in copies.items()})
        if problem:
            notes.append(f"{problem}; resized {folder.name}/ instead")
    return list(sources.values()), notes


def _find_small_copies(
    paths: list[pathlib.Path],
    folder: pathlib.Path,
    small_folder: pathlib.Path,
    camera_sizes: dict[pathlib.Path, tuple[int, int]],
    factor: int,
) -> tuple[dict[pathlib.Path, pathlib.Path], str]:
    """Returns the small copy of each photograph of a folder; or {} and the reason why the copies cannot be used."""
    small = list_photos(small_folder)
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    pairs = match_photos(list(names.values()), small) if len(small) == len(list_photos(folder)) else {}
    if len(pairs) < len(names):
        return {}, f"{small_folder.name}/ does not hold the same pictures as {folder.name}/"
    copies = {path: small[pairs[name]] for path, name in names.items()}
    odd = [
        path.name
        for path, copy in copies.items()
        if not (_is_shrunk(copy, camera_sizes[path], factor) or _is_shrunk(copy, read_photo_size(path), factor))
    ]
    if odd:
        return {}, (
            f"{len(odd)} pictures of {small_folder.name}/ are not {factor} times smaller than those of {folder.name}/: "
            f"{name_some(odd)}"
        )
    return copies, ""


def _is_shrunk(path: pathlib.Path, size: tuple[int, int], factor: int) -> bool:
    """True if a picture has 1 / factor of a (width, height), up to 1 px of rounding and 2 % of cropping."""
    return all(
        abs(small - full / factor) <= 1 + 0.02 * full / factor
        for small, full in zip(read_photo_size(path), size, strict=True)
    )


def _open(path: pathlib.Path) -> Image.Image:
    """Opens a picture. PIL's limit of its size is lower than that of some cameras: _MAX_PIXELS takes its place."""
    with _OPEN_LOCK:  # the limit is global
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            photo = Image.open(path, formats=_FORMATS)
        except PermissionError:
            raise
        except UnidentifiedImageError as error:
            reason = ValueError(f"it is none of {', '.join(_FORMATS)}")
            raise _make_picture_error(path, reason) from error
        except Exception as error:  # PIL's readers raise far more than OSError on damaged headers
            raise _make_picture_error(path, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = photo.size
    if width * height > _MAX_PIXELS:
        photo.close()
        raise UserError(
            f"{path} is {width} x {height}: expected at most {_MAX_PIXELS // 10**6} million pixels; shrink the picture"
        )
    return photo


def _make_picture_error(path: pathlib.Path, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"cannot read {path} as a picture ({reason}): replace the file, or remove it")


def _decode(path: pathlib.Path, factor: int, background: tuple[float, float, float]) -> tuple[np.ndarray, int]:
    """Returns a picture as uint8 [H, W, 3], and its EXIF orientation, which is not applied."""
    with _open(path) as photo:
        try:
            exif = photo.getexif()
            orientation = exif.get(_EXIF_ORIENTATION, 1)
            exif[_EXIF_ORIENTATION] = 1  # else PIL rotates a TIFF while loading it
            photo.load()
            rgb = _convert_to_rgb(photo, background)
        except Exception as error:  # as in _open: damaged data raises anything
            raise _make_picture_error(path, error) from error
    return _shrink(rgb, factor, path) if factor > 1 else np.array(rgb), orientation


def read_gray(path: pathlib.Path) -> UInt8[np.ndarray, "_H _W"]:
    """Decodes a picture as gray values. A mask with transparency is read without it.

    Raises:
      UserError: not a picture.
    """
    with _open(path) as picture:
        try:
            if picture.mode.startswith("I"):  # 16 bit
                return np.rint(np.asarray(picture).astype(np.int64) / 257).astype(np.uint8)
            return np.array((picture.convert("RGB") if picture.has_transparency_data else picture).convert("L"))
        except Exception as error:  # as in _open: damaged data raises anything
            raise _make_picture_error(path, error) from error


def _convert_to_rgb(photo: Image.Image, background: tuple[float, float, float]) -> Image.Image:
    if photo.mode == "F":
        raise ValueError("floating point pixels have no known range; 8 or 16 bit ones are expected")
    if photo.mode.startswith("I"):  # 16 bit grayscale, which PIL's own conversion clips at 255
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
        return np.array(photo.reduce(factor))  # the same average, much faster
    return average_areas(np.asarray(photo), *small)
