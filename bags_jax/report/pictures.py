"""PNG files and labelled contact sheets (photograph | plain | BAGS | sharp)."""

import io
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from bags_jax.atomic import write_atomic
from bags_jax.errors import UserError

Picture = Float[Array | np.ndarray, "_H _W 3"] | UInt8[Array | np.ndarray, "_H _W 3"]  # sRGB: [0, 1] or 0 .. 255

_INK, _FAINT, _PAPER = (32, 33, 36), (110, 113, 118), (255, 255, 255)
_MARGIN_PX, _GAP_PX = 24, 10


def to_uint8(picture: Picture) -> UInt8[np.ndarray, "_H _W 3"]:
    """Rounds a picture of floats in [0, 1] (clipped) to 8 bits. Returns 8-bit pictures unchanged.

    Raises:
      UserError: wrong dtype or shape, empty picture, NaN or infinity.
    """
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise UserError(f"a picture has shape {pixels.shape}; expected (H, W, 3) with at least one pixel")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise UserError(f"a picture has dtype {pixels.dtype}; expected floats in [0, 1] or uint8: convert it")
    if not np.all(np.isfinite(pixels)):
        raise UserError(f"a picture holds {int(np.sum(~np.isfinite(pixels)))} NaN or infinite values; expected [0, 1]")
    return np.round(np.clip(pixels.astype(np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)


def write_png(path: str | os.PathLike, picture: Picture, *, compress_level: int = 6) -> None:
    """Writes a PNG and creates its folder if needed. The write is atomic.

    Args:
      path: the file; must end in .png.
      picture: sRGB, floats in [0, 1] (clipped) or uint8.
      compress_level: of zlib, 1 (fast) to 9 (slow; files are a few percent smaller).
    Raises:
      UserError: see `to_uint8`; or the path does not end in .png or cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"the picture's file name is {path.name!r}; expected a name that ends in .png")
    encoded = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(encoded, "PNG", compress_level=compress_level)
    write_atomic(path, encoded.getvalue())


def enlarge(picture: Picture, scale: int, *, smooth: bool = True) -> UInt8[np.ndarray, "_H _W 3"]:
    """Enlarges a picture by an integer factor. smooth: Lanczos interpolation; otherwise square pixels.

    Raises:
      UserError: scale is not an integer >= 1; or see `to_uint8`.
    """
    if scale != int(scale) or scale < 1:
        raise UserError(f"scale is {scale}; expected a whole number of at least 1")
    pixels = to_uint8(picture)
    size = (pixels.shape[1] * int(scale), pixels.shape[0] * int(scale))
    filtering = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return pixels if scale == 1 else np.asarray(Image.fromarray(pixels).resize(size, filtering))


def zoom(picture: Picture, *, box_px: tuple[int, int, int, int], scale: int = 4) -> UInt8[np.ndarray, "_H _W 3"]:
    """Crops a detail and enlarges it with square pixels. Interpolation would add blur of its own.

    Args:
      picture: sRGB, floats in [0, 1] or uint8.
      box_px: left, top, width, height of the detail.
      scale: integer factor.
    Raises:
      UserError: the box is not inside the picture.
    """
    pixels = to_uint8(picture)
    left, top, width, height = box_px
    if min(left, top) < 0 or min(width, height) < 1 or left + width > pixels.shape[1] or top + height > pixels.shape[0]:
        raise UserError(
            f"the detail {box_px} leaves a picture of {pixels.shape[1]} x {pixels.shape[0]} px: move it inside"
        )
    return enlarge(pixels[top : top + height, left : left + width], scale, smooth=False)


def make_contact_sheet(
    rows: Sequence[Sequence[Picture]],
    *,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    scale: int = 1,
    smooth: bool = True,
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Lays out pictures on white, with titles above the columns and beside the rows, and captions under the pictures.

    Args:
      rows: rows with equal numbers of pictures. Pictures that are smaller than their cell are centred.
      column_titles: one per column, or none.
      row_titles: one per row, or none; written upwards along the left edge.
      captions: one per picture (for example its score), or none; "" for no caption.
      scale: integer factor that enlarges the pictures, not the text.
      smooth: enlarge by Lanczos interpolation; False: square pixels.
    Raises:
      UserError: no pictures, rows of different lengths, or a wrong number of titles or captions.
    """
    _check_grid(rows, column_titles, row_titles, captions)
    cells = [[Image.fromarray(enlarge(picture, scale, smooth=smooth)) for picture in row] for row in rows]
    widths = [max(row[i].width for row in cells) for i in range(len(cells[0]))]
    heights = [max(cell.height for cell in row) for row in cells]
    font_px = min(28, max(13, round(0.075 * min(widths))))
    title, small = ImageFont.load_default(font_px), ImageFont.load_default(max(12, round(0.85 * font_px)))
    line = math.ceil(1.9 * font_px)
    x0 = _MARGIN_PX + (line if row_titles else 0)
    y0 = _MARGIN_PX + (line if column_titles else 0)
    pitch = _GAP_PX + (line - _GAP_PX // 2 if captions else 0)
    lefts = [x0 + sum(widths[:i]) + _GAP_PX * i for i in range(len(widths))]
    tops = [y0 + sum(heights[:i]) + pitch * i for i in range(len(heights))]
    size = (lefts[-1] + widths[-1] + _MARGIN_PX, tops[-1] + heights[-1] + (pitch - _GAP_PX) + _MARGIN_PX)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for text, left, width in zip(column_titles, lefts, widths):
        draw.text((left + width / 2, y0 - 0.45 * line), _shorten(text, title, width), _INK, title, anchor="mm")
    for text, top, height in zip(row_titles, tops, heights):
        strip = Image.new("RGB", (height, line), _PAPER)
        shortened = _shorten(text, title, height)
        ImageDraw.Draw(strip).text((height / 2, 0.5 * line), shortened, _INK, title, anchor="mm")
        sheet.paste(strip.transpose(Image.Transpose.ROTATE_90), (x0 - line, top))
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            sheet.paste(cell, (lefts[c] + (widths[c] - cell.width) // 2, tops[r] + (heights[r] - cell.height) // 2))
            if captions and captions[r][c]:
                at = (lefts[c] + widths[c] / 2, tops[r] + heights[r] + 0.42 * line)
                draw.text(at, _shorten(captions[r][c], small, widths[c]), _FAINT, small, anchor="mm")
    return np.asarray(sheet)


def _check_grid(rows, column_titles, row_titles, captions) -> None:
    lengths = [len(row) for row in rows]
    if not lengths or min(lengths) < 1 or len(set(lengths)) > 1:
        raise UserError(f"the sheet has rows of {lengths} pictures; expected at least one row, all of one length")
    for name, found, wanted in (
        ("column_titles", len(column_titles), lengths[0]),
        ("row_titles", len(row_titles), len(rows)),
        ("rows of captions", len(captions), len(rows)),
        ("captions", sum(map(len, captions)), lengths[0] * len(rows)),
    ):
        if found not in (0, wanted):
            raise UserError(f"{len(rows)} x {lengths[0]} pictures have {found} {name}; expected {wanted} or none")
    if any(len(row) != lengths[0] for row in captions):
        raise UserError(f"captions come in rows of {[len(row) for row in captions]}; expected {lengths[0]} in each row")


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shortens a text that is wider than its cell, px, and appends an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
