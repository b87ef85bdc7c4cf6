"""What the blur model learned, to look at: kernels, masks and the views ranked from blurriest to sharpest."""

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
# sRGB anchors from night blue over plum and coral to pale yellow. `_colored` spaces them by their lightness, so that
# equal steps in value look like equal steps in brightness, in grey print too.
_ANCHORS = np.array([[6, 8, 24], [58, 22, 92], [142, 40, 112], [226, 86, 84], [252, 164, 84], [255, 246, 204]])
_STATS = ("mean_mask", "rms_width_px", "direction_deg")


def kernel_grid(
    kernels: Float[Array | np.ndarray, "gh gw K K"], *, cell_px: int = 64, gap_px: int = 2
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Draws a grid of blur kernels, each scaled so that its largest tap is brightest, with thin white lines between.

    Args:
      kernels: taps of at least 0, rows (dy) then columns (dx); the weight of pixel x + k in the blurred pixel x.
      cell_px: side of one drawn kernel, px; taps are smoothed where that is larger than K.
      gap_px: width of the lines, px.
    Raises:
      UserError: another shape, an empty grid, negative taps, NaN or infinity.
    """
    taps = _finite(kernels, "kernels")
    if taps.ndim != 4 or taps.shape[2] != taps.shape[3] or taps.size == 0:
        raise UserError(f"the kernels have shape {taps.shape}; expected (rows, columns, K, K), none of them 0")
    if taps.min() < 0:
        raise UserError(f"the kernels fall to {taps.min():g}; expected taps of at least 0: pass them after the softmax")
    num_rows, num_columns = taps.shape[:2]
    cell_px = max(int(cell_px), taps.shape[2])
    step = cell_px + gap_px
    sheet = np.full((num_rows * step + gap_px, num_columns * step + gap_px, 3), _PAPER, np.uint8)
    for row in range(num_rows):
        for column in range(num_columns):
            kernel = taps[row, column] / max(float(taps[row, column].max()), 1e-12)
            large = Image.fromarray(kernel.astype(np.float32)).resize((cell_px, cell_px), Image.Resampling.BICUBIC)
            top, left = gap_px + row * step, gap_px + column * step
            sheet[top : top + cell_px, left : left + cell_px] = _colored(np.asarray(large))
    return sheet


def mask_picture(mask: Float[Array | np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Draws a blur mask: night blue where the sharp render is kept (0), pale yellow where all is blurred (1).

    Raises:
      UserError: another shape, an empty mask, values outside [0, 1].
    """
    values = _finite(mask, "mask")
    if values.ndim != 2 or values.size == 0 or values.min() < 0 or values.max() > 1:
        raise UserError(
            f"the mask has shape {values.shape}; expected (H, W) with values in [0, 1]: pass it after the sigmoid"
        )
    return _colored(values)


def rank_views(stats: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ranks views from the blurriest to the sharpest: by mean mask times kernel width, then by name.

    Args:
      stats: for each view's name its mean_mask in [0, 1], rms_width_px (of the kernels) and direction_deg (of the
        blur's longer axis; kept as it is).
    Returns:
      One dict for each view, worst first: rank (from 1), name, blur_px (the product) and the three figures.
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
    """Writes the ranking of `rank_views` as JSON: {"views": [...]}. The file appears whole or not at all.

    Raises:
      UserError: as `rank_views`, or a path that cannot be written.
    """
    ranked = [{k: round(v, 6) if isinstance(v, float) else v for k, v in view.items()} for view in rank_views(stats)]
    write_atomic(path, (json.dumps({"views": ranked}, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _finite(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if not np.all(np.isfinite(array)):
        raise UserError(
            f"the {name} hold {int(np.sum(~np.isfinite(array)))} NaN or infinite values: expected finite ones"
        )
    return array


def _colored(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (clipped) to sRGB, uint8."""
    linear = (_ANCHORS / 255.0) ** 2.2
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.cbrt(luminance)  # CIE L*, up to scale and offset
    places = (lightness - lightness[0]) / (lightness[-1] - lightness[0])
    channels = [np.interp(values, places, _ANCHORS[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)
