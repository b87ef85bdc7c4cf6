"""Valid pixels: the part of each photograph that training and scores may use, from mask pictures on disk.

The convention of COLMAP and nerfstudio: white is used, black is left out. (The mask of the blur model is another thing.)
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from bags_jax.data.area import average_areas
from bags_jax.data.images import read_gray
from bags_jax.data.pairing import list_photos, match_photos, name_some
from bags_jax.errors import UserError

FOLDER = "masks"  # beside images/
WHITE = 254  # a pixel is valid if the mean of the mask over its area is at least this


def find_mask_files(
    root: pathlib.Path, names: Sequence[str]
) -> tuple[tuple[pathlib.Path | None, ...], tuple[str, ...]]:
    """Finds the mask of each photograph in masks/: NAME.png, or NAME.jpg.png as COLMAP has it.

    Args:
      root: the scene's folder.
      names: file names of the photographs, relative to images/.
    Returns:
      A file or None for each name, and notes for the user.
    Raises:
      UserError: masks/ has pictures, but none with the name of a photograph; or two masks fit one photograph.
    """
    files = list_photos(root / FOLDER)
    if not files:
        return (None,) * len(names), ()
    colmap = {name: f"{name}.png" for name in names if f"{name}.png" in files}
    rest = [name for name in names if name not in colmap]
    pairs = colmap | match_photos(rest, sorted(files.keys() - set(colmap.values())))
    if not pairs:
        raise UserError(
            f"{root / FOLDER} has {len(files)} pictures, but none belongs to a photograph: expected {names[0]} or "
            f"{names[0]}.png; rename them, or move the folder away"
        )
    found = tuple(files[pairs[name]] if name in pairs else None for name in names)
    missing = [name for name in names if name not in pairs]
    notes = (f"{len(missing)} photographs have no mask, used whole: {name_some(missing)}",) if missing else ()
    return found, notes


def read_valid(
    file: pathlib.Path | None, *, full_size: tuple[int, int], height: int, width: int
) -> Bool[np.ndarray, "_H _W"]:
    """Reads the mask of one photograph at the size of the loaded photograph.

    Args:
      file: the mask; None: all pixels are valid.
      full_size: width and height of the photograph on disk, px.
      height, width: of the photograph as loaded, px.
    Raises:
      UserError: not a picture, or neither of the two sizes.
    """
    if file is None:
        return np.ones((height, width), bool)
    gray = read_gray(file)
    size = gray.shape[1], gray.shape[0]
    if size not in (full_size, (width, height)):
        raise UserError(
            f"the mask {file} is {size[0]} x {size[1]}, its photograph {full_size[0]} x {full_size[1]}: expected the "
            "same size; resize the mask"
        )
    return shrink_valid(gray, height, width)


def shrink_valid(gray: Shaped[np.ndarray, "_H _W"], height: int, width: int) -> Bool[np.ndarray, "_H _W"]:
    """Resizes a mask, uint8 or bool: a pixel is valid where its whole area is."""
    gray = np.where(gray, np.uint8(255), np.uint8(0)) if gray.dtype == bool else gray
    if gray.shape != (height, width):
        gray = average_areas(np.repeat(gray[..., None], 3, axis=-1), height, width)[..., 0]
    return gray >= WHITE
