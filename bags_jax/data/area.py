"""Pictures made smaller by area averaging."""

import math

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image


def average_areas(image: UInt8[np.ndarray, "_H _W 3"], height: int, width: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """The image at a smaller size: each pixel is the mean of the area that it covers, parts of pixels included."""
    full_height, full_width = image.shape[:2]
    if full_height % height == 0 and full_width % width == 0:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))
    # Elsewhere Pillow takes whole pixels or none of them, which moves the content by up to half a pixel.
    columns = _average_rows(image, height).swapaxes(0, 1)
    return np.rint(_average_rows(columns, width).swapaxes(0, 1)).astype(np.uint8)


def _average_rows(image: Shaped[np.ndarray, "_H _W 3"], num: int) -> Float[np.ndarray, "_h _W 3"]:
    """The means over `num` equal parts of the rows, float32."""
    full = image.shape[0]
    edges = np.arange(num + 1) * full / num
    first, total = edges[:-1].astype(int), np.zeros((num, *image.shape[1:]), np.float32)
    for k in range(math.ceil(full / num) + 1):
        row = first + k
        covered = np.maximum(np.minimum(edges[1:], row + 1) - np.maximum(edges[:-1], row), 0.0) * num / full
        total += covered.astype(np.float32)[:, None, None] * image[np.minimum(row, full - 1)]
    return total
