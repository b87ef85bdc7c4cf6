"""Pictures and figures of the learned blur: kernels, masks, and the views ranked from blurriest to sharpest."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from bags_jax.atomic import write_atomic
from bags_jax.errors import UserError

_PAPER = 255
# sRGB colours from night blue over plum and coral to pale yellow. `_colorize` spaces them by lightness: equal steps in
# value are equal steps in brightness, also when printed in grey.
_ANCHORS = np.array([[6, 8, 24], [58, 22, 92], [142, 40, 112], [226, 86, 84], [252, 164, 84], [255, 246, 204]])
_STATS = ("mean_mask", "rms_width_px", "direction_deg")


def draw_kernels(
    kernels: Float[Array | np.ndarray, "gh gw K K"], *, cell_px: int = 64, gap_px: int = 2
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Draws a grid of blur kernels with thin white lines between them. Each kernel's largest tap has full brightness.

    Args:
      kernels: taps >= 0, rows (dy) then columns (dx). Tap k is the weight of pixel x + k in the blurred pixel x.
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
    sheet = np.full((num_rows * step + gap_px, num_columns * step + gap_px, 3), _PAPER, np.uint8)
    for row in range(num_rows):
        for column in range(num_columns):
            kernel = taps[row, column] / max(float(taps[row, column].max()), 1e-12)
            large = Image.fromarray(kernel.astype(np.float32)).resize((cell_px, cell_px), Image.Resampling.BICUBIC)
            top, left = gap_px + row * step, gap_px + column * step
            sheet[top : top + cell_px, left : left + cell_px] = _colorize(np.asarray(large))
    return sheet


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
    return _colorize(values)


def rank_views(stats: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ranks views from the blurriest to the sharpest: by mean mask times kernel width, then by name.

    Args:
      stats: by view name: mean_mask in [0, 1], rms_width_px (of the kernels), direction_deg (of the blur's longer
        axis; copied to the result).
    Returns:
      One dict per view, blurriest first: rank (from 1), name, blur_px (mean_mask * rms_width_px) and the three figures.
    Raises:
      UserError: a figure is missing, NaN or infinite.
    """
    views = []
    for name, figures in stats.items():
        missing = [key for key in _STATS if key not in figures or not math.isfinite(float(figures[key]))]
        if missing:
            raise UserError(f"the blur figures of view {name!r} lack a finite {', '.join(missing)}: compute them again")
        row = {key: float(figures[key]) for key in _STATS}
        views.append({"name": name, "blur_px": row["mean_mask"] * row["rms_width_px"], **row})
    views.sort(key=lambda view: (-view["blur_px"], view["name"]))
    return [{"rank": rank, **view} for rank, view in enumerate(views, start=1)]


def write_blur_json(path: str | os.PathLike, stats: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the ranking of `rank_views` as JSON, {"views": [...]}. The write is atomic.

    Raises:
      UserError: see `rank_views`; or the path cannot be written.
    """
    ranked = [{k: round(v, 6) if isinstance(v, float) else v for k, v in view.items()} for view in rank_views(stats)]
    write_atomic(path, (json.dumps({"views": ranked}, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _check_finite(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if not np.all(np.isfinite(array)):
        raise UserError(
            f"the {name} hold {int(np.sum(~np.isfinite(array)))} NaN or infinite values; expected finite values"
        )
    return array


def _colorize(values: np.ndarray) -> np.ndarray:
    """Maps values in [0, 1] (clipped) to sRGB, uint8."""
    linear = (_ANCHORS / 255.0) ** 2.2
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.cbrt(luminance)  # CIE L*, up to scale and offset
    places = (lightness - lightness[0]) / (lightness[-1] - lightness[0])
    channels = [np.interp(values, places, _ANCHORS[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)
