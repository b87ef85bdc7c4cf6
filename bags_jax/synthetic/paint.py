"""Brushes of the embedded worlds: colours, soft shapes, noise and letters as functions of a face's coordinates.

Brushes and painters are named for the thing they paint.
"""

import functools
import itertools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bags_jax.synthetic.raycast import Painter

_SOFT = 0.008  # width of painted edges, scene units


def rgb(code: str) -> np.ndarray:
    """Converts '#rrggbb' (sRGB) to linear light."""
    value = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def edge(distance: np.ndarray) -> np.ndarray:
    """Returns 1 where a signed distance (scene units) is positive, else 0, with a soft edge."""
    return np.clip(distance / _SOFT + 0.5, 0.0, 1.0)


def mix(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Blends colours [h, w, 3]: `under` where cover [h, w] is 0, `over` where it is 1."""
    return under + (over - under) * cover[..., None]


def noise(*coordinates: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns smooth value noise in [0, 1] on the unit lattice, in 2 or 3 dimensions."""
    table = np.random.default_rng(seed).random((64,) * len(coordinates), np.float32)
    cells = [np.floor(c).astype(int) for c in coordinates]
    ramps = [(c - cell) ** 2 * (3 - 2 * (c - cell)) for c, cell in zip(coordinates, cells, strict=True)]
    total = np.zeros(coordinates[0].shape, np.float32)
    for corner in itertools.product((0, 1), repeat=len(coordinates)):
        weight = np.ones(coordinates[0].shape, np.float32)
        for step, ramp in zip(corner, ramps, strict=True):
            weight = weight * (ramp if step else 1 - ramp)
        total += weight * table[tuple((cell + step) % 64 for cell, step in zip(cells, corner, strict=True))]
    return total


def fill(code: str, like: np.ndarray) -> np.ndarray:
    """Returns one colour [h, w, 3] for coordinates [h, w]."""
    return np.broadcast_to(rgb(code), (*like.shape, 3))


def cells(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Returns a random value in [0, 1] for each unit cell."""
    table = np.random.default_rng(seed).random((64, 64), np.float32)
    return table[np.floor(x).astype(int) % 64, np.floor(y).astype(int) % 64]


def stripe(position: np.ndarray, period: float, width: float) -> np.ndarray:
    """Returns 1 in stripes of `width`, one every `period`, of which one is centred at 0."""
    return edge(width / 2 - np.abs((position + period / 2) % period - period / 2))


@functools.cache
def _letters(text: str) -> np.ndarray:
    """Returns the coverage in [0, 1] of bold text, cropped to its ink; row 0 is the lowest."""
    canvas = Image.new("L", (160 * len(text) + 80, 260))
    font = ImageFont.load_default(size=160)
    ImageDraw.Draw(canvas).text((40, 30), text, fill=255, font=font, stroke_width=7, stroke_fill=255)
    return np.asarray(canvas.crop(canvas.getbbox()), np.float32)[::-1] / 255


def text(text: str, x: np.ndarray, y: np.ndarray, height: float, limit: float) -> np.ndarray:
    """Returns the coverage of text centred at the origin: `height` scene units tall, at most `limit` wide."""
    ink = _letters(text)
    width = min(limit, height * ink.shape[1] / ink.shape[0])
    column, row = (x / width + 0.5) * ink.shape[1], (y / height + 0.5) * ink.shape[0]
    inside = (column >= 0) & (column < ink.shape[1]) & (row >= 0) & (row < ink.shape[0])
    column, row = np.clip(column, 0, ink.shape[1] - 1).astype(int), np.clip(row, 0, ink.shape[0] - 1).astype(int)
    return ink[row, column] * inside


def plain(code: str) -> Painter:
    """Returns a painter of one colour."""
    return lambda face, x, y: fill(code, x)
