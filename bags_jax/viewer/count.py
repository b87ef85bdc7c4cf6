"""Counts the Gaussians that cover each pixel."""

import numpy as np
from jaxtyping import Float, Int

from bags_jax.geometry import MIN_ALPHA

MAX_SPANS = 1 << 21  # rows of Gaussians that are worked on at a time


def count_gaussians(
    means_px: Float[np.ndarray, "N 2"],
    conics: Float[np.ndarray, "N 3"],
    opacities: Float[np.ndarray, "N"],
    *,
    width: int,
    height: int,
) -> Int[np.ndarray, "_H _W"]:
    """Counts, at each pixel centre, the Gaussians whose alpha reaches 1/255 there, hidden ones included.

    The ellipse a dx^2 + 2 b dx dy + c dy^2 <= 2 ln(255 opacity) is one span in each row of pixels: +1 where it begins, -1
    behind its end, then a running sum along the rows.

    Args:
      means_px, conics, opacities: of the Gaussians that are not culled.
      width, height: of the picture, px.
    """
    visible = opacities > MIN_ALPHA
    (x, y), (a, b, c) = means_px[visible].T.astype(np.float64), conics[visible].T.astype(np.float64)
    level = 2 * np.log(opacities[visible].astype(np.float64) / MIN_ALPHA)
    determinant = np.maximum(a * c - b * b, 1e-12)
    reach = np.sqrt(level * a / determinant)  # of the ellipse above and below its centre
    first = np.clip(np.ceil(y - reach - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.floor(y + reach - 0.5), -1, height - 1).astype(np.int64)
    rows = np.maximum(last - first + 1, 0)
    steps = np.zeros(height * (width + 1), np.int64)
    ends = np.cumsum(rows)
    for part in np.split(np.arange(len(rows)), np.searchsorted(ends, np.arange(MAX_SPANS, ends[-1:].sum(), MAX_SPANS))):
        owner = np.repeat(part, rows[part])
        row = np.arange(len(owner)) - np.repeat(np.cumsum(rows[part]) - rows[part], rows[part]) + first[owner]
        dy = row + 0.5 - y[owner]
        half = np.sqrt(np.maximum(level[owner] * a[owner] - dy * dy * determinant[owner], 0.0)) / a[owner]
        middle = x[owner] - b[owner] * dy / a[owner]
        left = np.clip(np.ceil(middle - half - 0.5), 0, width).astype(np.int64)
        right = np.clip(np.floor(middle + half - 0.5) + 1, left, width).astype(np.int64)
        size = len(steps)
        steps += np.bincount(row * (width + 1) + left, minlength=size) - np.bincount(
            row * (width + 1) + right, minlength=size
        )
    return np.cumsum(steps.reshape(height, width + 1), axis=1)[:, :width]
