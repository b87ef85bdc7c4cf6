"""One picture for a paper: photograph, blur, the view without blur, re-blurred render and error, with colour bars."""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from bags_jax.report.blur_pictures import ERROR_LIMIT, draw_error
from bags_jax.report.colors import colorize, palette
from bags_jax.report.views import TrainingPictures, ViewBlur

PANEL_PX = 480  # width of a panel, about; larger photographs are reduced
NUM_COLUMNS = 3
RULER_PX = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # lengths of the ruler, px of the photograph
_INK, _FAINT, _PAPER = (32, 33, 36), (110, 113, 118), (255, 255, 255)
_MARGIN_PX, _GAP_PX, _LINE_PX, _FONT_PX = 24, 16, 24, 15


@dataclasses.dataclass(frozen=True)
class Bar:
    """The scale under a panel: labels at both ends of a strip of colours; `length` is its share of the panel's width."""

    low: str
    high: str
    length: float = 0.5
    is_ruler: bool = False  # a black line in place of the colours


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture of the sheet."""

    picture: UInt8[np.ndarray, "_H _W 3"]
    caption: str
    bar: Bar | None = None


def draw_blur_sheet(view: TrainingPictures, blur: ViewBlur, in_place: np.ndarray, *, limit_px: float, title: str):
    """Draws one training view for a paper.

    Args:
      view, blur: pictures and blur of the view.
      in_place: its kernels over the photograph, as `draw_kernels_in_place` draws them.
      limit_px: width with the brightest colour, px of the photograph.
      title: text above the panels.
    """
    height, width = view.photo.shape[:2]
    weight = f"weight {blur.grid.full_weight:.2g} (square root)"
    panels = [
        Panel(view.photo, "photograph", _ruler(width)),
        Panel(in_place, "blur kernels, enlarged", Bar("0", weight)),
        Panel(colorize(blur.reach_px / limit_px), "blur width, RMS", Bar("0", f"{limit_px:g} px")),
        Panel(view.sharp, "render without blur"),
        Panel(view.blurred, "render, blurred"),
        Panel(
            draw_error(view.blurred, view.photo), "error of the blurred render", Bar("0", f"{ERROR_LIMIT:g} of sRGB")
        ),
    ]
    scale = max(1, round(PANEL_PX / width)) if width < PANEL_PX else PANEL_PX / width
    return draw_panels(panels, title=title, height=round(scale * height), width=round(scale * width))


def draw_panels(panels: list[Panel], *, title: str, height: int, width: int) -> UInt8[np.ndarray, "_H _W 3"]:
    """Draws panels in rows of NUM_COLUMNS on white, each with its caption and its scale, at height x width px."""
    num_rows = -(-len(panels) // NUM_COLUMNS)
    below = 2 * _LINE_PX + _GAP_PX
    size = (2 * _MARGIN_PX + NUM_COLUMNS * (width + _GAP_PX) - _GAP_PX, 2 * _MARGIN_PX + _LINE_PX)
    sheet = Image.new("RGB", (size[0], size[1] + num_rows * (height + below)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    draw.text((_MARGIN_PX, _MARGIN_PX), title, _INK, font)
    for index, panel in enumerate(panels):
        row, column = divmod(index, NUM_COLUMNS)
        left = _MARGIN_PX + column * (width + _GAP_PX)
        top = _MARGIN_PX + _LINE_PX + row * (height + below)
        # Square pixels where a panel is enlarged: interpolation would add blur of its own.
        filtering = Image.Resampling.NEAREST if panel.picture.shape[1] <= width else Image.Resampling.BOX
        sheet.paste(Image.fromarray(panel.picture).resize((width, height), filtering), (left, top))
        draw.text((left, top + height + 4), f"({'abcdefgh'[index]}) {panel.caption}", _INK, font)
        if panel.bar is not None:
            _draw_bar(sheet, panel.bar, font, left=left, top=top + height + _LINE_PX, width=width)
    return np.asarray(sheet)


def _draw_bar(sheet: Image.Image, bar: Bar, font, *, left: int, top: int, width: int) -> None:
    draw, length = ImageDraw.Draw(sheet), max(2, round(bar.length * width))
    middle = top + _LINE_PX // 2
    start = left + (round(font.getlength(bar.low)) + 6 if bar.low else 0)
    if bar.is_ruler:
        draw.line([(start, middle), (start + length, middle)], _INK, 2)
        for x in (start, start + length):
            draw.line([(x, middle - 5), (x, middle + 5)], _INK, 2)
    else:
        strip = Image.fromarray(palette()[None]).resize((length, 10))
        sheet.paste(strip, (start, middle - 5))
    draw.text((left, middle), bar.low, _FAINT, font, anchor="lm")
    draw.text((start + length + 6, middle), bar.high, _FAINT, font, anchor="lm")


def _ruler(width: int) -> Bar:
    """A ruler of about a fifth of a photograph, px."""
    length = min(RULER_PX, key=lambda x: abs(x - width / 5))
    return Bar("", f"{length} px", length / width, is_ruler=True)
