"""Resizing of pictures by area averaging."""

import math

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

BLOCK = 64  # rows averaged at a time; a whole large photograph in float32 would take a gigabyte


def average_areas(image: UInt8[np.ndarray, "_H _W 3"], height: int, width: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """Resizes an image: each pixel is the mean of the area that it covers, parts of pixels included."""
    full_height, full_width = image.shape[:2]
    if full_height % height == 0 and full_width % width == 0:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    # For other sizes Pillow averages whole pixels only, which moves the content by up to half a pixel.
    rows, columns = _make_edges(full_height, height), _make_edges(full_width, width)
    averaged = np.empty((height, width, 3), np.uint8)
    for start in range(0, height, BLOCK):
        block = _average_rows(image, rows[start : start + BLOCK + 1]).swapaxes(0, 1)
        averaged[start : start + BLOCK] = np.rint(_average_rows(block, columns).swapaxes(0, 1))
    return averaged


def _make_edges(full: int, num: int) -> Float[np.ndarray, "_E"]:
    """Returns the edges of num equal parts of [0, full]."""
    return np.arange(num + 1) * full / num


def _average_rows(image: Shaped[np.ndarray, "_H _W 3"], edges: Float[np.ndarray, "_E"]) -> Float[np.ndarray, "_h _W 3"]:
    """Averages the rows between edges, in float32; a row at an edge counts by its part inside."""
    full, width = image.shape[0], edges[1] - edges[0]
    first, sums = edges[:-1].astype(int), np.zeros((len(edges) - 1, *image.shape[1:]), np.float32)
    for k in range(math.ceil(width) + 1):
        row = first + k
        covered = np.maximum(np.minimum(edges[1:], row + 1) - np.maximum(edges[:-1], row), 0.0) / width
        sums += covered.astype(np.float32)[:, None, None] * image[np.minimum(row, full - 1)]
    return sums
