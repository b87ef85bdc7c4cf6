"""Pictures and figures of the learned blur: kernels, masks, widths, errors, and the views ranked from blurriest to sharpest."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from bags_jax.atomic import write_atomic
from bags_jax.errors import UserError
from bags_jax.report.colors import colorize
from bags_jax.report.views import KernelGrid, places

NUM_DRAWN = 54  # kernels in one picture: 6 x 9 of a photograph of 3 : 2
DIMMED = 0.45  # brightness of the photograph behind its kernels
SEE_THROUGH, COVER = 0.08, 3.0  # taps up to this brightness do not cover the photograph; those above soon do
FILLED = 0.94  # share of the distance between two kernels that one of them fills
ERROR_LIMIT = 0.1  # errors from here on have the brightest colour; sRGB in [0, 1]
_PAPER = 255
_STATS = ("blur_px", "mean_mask", "direction_deg")


def draw_kernels(
    kernels: Float[Array | np.ndarray, "gh gw K K"],
    *,
    full_weight: float | None = None,
    cell_px: int = 64,
    gap_px: int = 2,
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Draws a grid of blur kernels with thin white lines between them.

    Brightness is the square root of a tap over one weight for all: kernels compare, and faint far taps show.

    Args:
      kernels: taps >= 0, rows (dy) then columns (dx). Tap k is the weight of pixel x + k in the blurred pixel x.
      full_weight: weight from which a tap has full brightness; None: the heaviest tap of all.
      cell_px: side of one drawn kernel, px. If larger than K, the taps are interpolated (bicubic).
      gap_px: width of the lines, px.
    Raises:
      UserError: wrong shape, empty grid, negative taps, NaN or infinity.
    """
    taps = _check_finite(kernels, "kernels")
    if taps.ndim != 4 or taps.shape[2] != taps.shape[3] or taps.size == 0:
        raise UserError(f"the kernels have shape {taps.shape}; expected (rows, columns, K, K), none of them 0")
    if taps.min() < 0:
        raise UserError(f"the smallest tap is {taps.min():g}; expected at least 0: pass the kernels after the softmax")
    num_rows, num_columns = taps.shape[:2]
    cell_px = max(int(cell_px), taps.shape[2])
    step = cell_px + gap_px
    brightness = scale_taps(taps, max(float(taps.max()), 1e-12) if full_weight is None else full_weight)
    cells = np.stack([_resize(kernel, cell_px) for row in brightness for kernel in row])
    sheet = np.full((num_rows * step + gap_px, num_columns * step + gap_px, 3), _PAPER, np.uint8)
    for cell, (row, column) in zip(colorize(cells), np.ndindex(num_rows, num_columns), strict=True):
        top, left = gap_px + row * step, gap_px + column * step
        sheet[top : top + cell_px, left : left + cell_px] = cell
    return sheet


def scale_taps(kernels: Float[np.ndarray, "gh gw K K"], full_weight: float) -> Float[np.ndarray, "gh gw K K"]:
    """Brightness of taps in [0, 1]: their square root, `full_weight` and more with full brightness."""
    return np.sqrt(np.minimum(kernels / full_weight, 1.0))


def _resize(values: np.ndarray, side: int) -> np.ndarray:
    """Resizes values in [0, 1] to a square."""
    picture = Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(picture), 0.0, 1.0)


def draw_kernels_in_place(
    photo: UInt8[np.ndarray, "H W 3"], grid: KernelGrid, *, width: int
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Draws about NUM_DRAWN of the kernels, enlarged, over a dimmed grey copy of the photograph, each at its pixel.

    Args:
      photo: sRGB.
      grid: the kernels of the whole photograph.
      width: of the result, px.
    """
    height = max(1, round(width * photo.shape[0] / photo.shape[1]))
    rows, columns = choose_drawn(height, width, grid.masks.shape)
    brightness = scale_taps(grid.kernels, grid.full_weight)
    side = max(3, int(FILLED * min(height / len(rows), width / len(columns))))
    grey = np.asarray(Image.fromarray(photo).convert("L").resize((width, height), Image.Resampling.BICUBIC))
    values = np.zeros((height + 2 * side, width + 2 * side), np.float32)
    for row in rows:
        for column in columns:
            top = side + int((row + 0.5) / grid.masks.shape[0] * height) - side // 2
            left = side + int((column + 0.5) / grid.masks.shape[1] * width) - side // 2
            values[top : top + side, left : left + side] = _resize(brightness[row, column], side)
    values = values[side:-side, side:-side]
    cover = np.clip(COVER * (values - SEE_THROUGH), 0.0, 1.0)[..., None]
    behind = DIMMED * grey.astype(np.float32)[..., None]
    return np.round(behind + cover * (colorize(values) - behind)).astype(np.uint8)


def choose_drawn(height: int, width: int, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Chooses about NUM_DRAWN kernels of a grid, in nearly square cells of a picture: their rows and their columns."""
    num_rows = max(1, round(math.sqrt(NUM_DRAWN * height / width)))
    return places(num_rows, grid[0]), places(max(1, round(NUM_DRAWN / num_rows)), grid[1])


def draw_mask(mask: Float[Array | np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Draws a blur mask: night blue for 0 (the sharp render), pale yellow for 1 (the blurred render).

    Raises:
      UserError: wrong shape, empty mask, values outside [0, 1].
    """
    values = _check_finite(mask, "mask")
    if values.ndim != 2 or values.size == 0 or values.min() < 0 or values.max() > 1:
        raise UserError(
            f"the mask has shape {values.shape}; expected (H, W) with values in [0, 1]: pass it after the sigmoid"
        )
    return colorize(values)


def draw_error(picture: UInt8[np.ndarray, "H W 3"], truth: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Draws the mean absolute difference of the three channels, night blue for 0, pale yellow from ERROR_LIMIT on."""
    difference = np.abs(picture.astype(np.int16) - truth).mean(axis=-1, dtype=np.float32)
    return colorize(difference / (255.0 * ERROR_LIMIT))


def rank_views(stats: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ranks views from the blurriest to the sharpest: by the mean RMS width of their blur, then by name.

    Args:
      stats: by view name: blur_px (mean over the pixels), mean_mask in [0, 1], direction_deg (of the blur's longer axis).
    Returns:
      One dict per view, blurriest first: rank (from 1), name and the three figures.
    Raises:
      UserError: a figure is missing, NaN or infinite.
    """
    views = []
    for name, figures in stats.items():
        missing = [key for key in _STATS if key not in figures or not math.isfinite(float(figures[key]))]
        if missing:
            raise UserError(f"the blur figures of view {name!r} lack a finite {', '.join(missing)}: compute them again")
        views.append({"name": name, **{key: float(figures[key]) for key in _STATS}})
    views.sort(key=lambda view: (-view["blur_px"], view["name"]))
    return [{"rank": rank, **view} for rank, view in enumerate(views, start=1)]


def write_blur_files(folder: str | os.PathLike, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the ranking of `rank_views` as blur.json, {"views": [...]}, and as blur.csv. The writes are atomic.

    Raises:
      UserError: see `rank_views`; or a file cannot be written.
    """
    ranked = [{k: round(v, 6) if isinstance(v, float) else v for k, v in view.items()} for view in rank_views(stats)]
    text = json.dumps({"views": ranked}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(os.path.join(folder, "blur.json"), text.encode())
    write_csv(os.path.join(folder, "blur.csv"), ranked)


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that share their keys as CSV; None is an empty cell. The write is atomic.

    Raises:
      UserError: the path cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def _check_finite(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if not np.all(np.isfinite(array)):
        raise UserError(
            f"the {name} hold {int(np.sum(~np.isfinite(array)))} NaN or infinite values; expected finite values"
        )
    return array
