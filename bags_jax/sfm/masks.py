"""Masks beside photographs (white is used, black is left out): for COLMAP, and copied with the photographs."""

import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from bags_jax.data.images import read_photo_size
from bags_jax.data.valid_pixels import FOLDER, WHITE, find_mask_files
from bags_jax.errors import UserError

_ORIENTATION = 0x0112


def write_masks(root: pathlib.Path, photos: Mapping[str, pathlib.Path], folder: pathlib.Path) -> int:
    """Writes the masks of root/masks as COLMAP reads them: NAME.png, as large as the photograph. Returns their number.

    Raises:
      UserError: a mask is no picture, or none belongs to a photograph.
    """
    return _write(root, {name: (path, name) for name, path in photos.items()}, folder, is_turned=False)


def copy_masks(root: pathlib.Path, photos: Mapping[str, tuple[pathlib.Path, str]], folder: pathlib.Path) -> int:
    """Copies the masks of root/masks, turned upright as EXIF turns their photographs. Returns their number.

    Args:
      photos: file of each photograph, and its new name, by name.
    Raises:
      UserError: as in `write_masks`.
    """
    return _write(root, photos, folder, is_turned=True)


def _write(
    root: pathlib.Path, photos: Mapping[str, tuple[pathlib.Path, str]], folder: pathlib.Path, *, is_turned: bool
) -> int:
    files, _ = find_mask_files(root, list(photos)) if (root / FOLDER).is_dir() else ((), ())
    found = [(mask, *photos[name]) for name, mask in zip(photos, files, strict=False) if mask is not None]
    for mask, photo, new_name in found:
        target = folder / f"{new_name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(mask, photo, target, is_turned=is_turned)
    return len(found)


def _copy(mask: pathlib.Path, photo: pathlib.Path, target: pathlib.Path, *, is_turned: bool) -> None:
    try:
        with Image.open(mask) as opened:
            gray = Image.fromarray(np.where(np.asarray(opened.convert("L")) >= WHITE, 255, 0).astype(np.uint8))
        if is_turned:
            with Image.open(photo) as stored:  # a mask has the pixels of its photograph, but not its EXIF
                exif = gray.getexif()
                exif[_ORIENTATION] = stored.getexif().get(_ORIENTATION, 1)
            gray = ImageOps.exif_transpose(gray)
        else:
            gray = gray.resize(read_photo_size(photo), Image.Resampling.NEAREST)
        gray.save(target)
    except OSError as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read the mask {mask} as a picture ({reason}): replace it, or remove it") from error
