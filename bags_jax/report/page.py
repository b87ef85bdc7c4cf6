"""The report: one HTML file that needs nothing else, made from the templates in templates/."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from bags_jax.atomic import write_atomic
from bags_jax.report import embed
from bags_jax.report.blur_pictures import ERROR_LIMIT, draw_error
from bags_jax.report.camera_map import CameraMap
from bags_jax.report.charts import Chart
from bags_jax.report.colors import palette
from bags_jax.report.views import HeldOutPictures, KernelGrid, TrainingPictures, ViewBlur

TEMPLATES = pathlib.Path(__file__).parent / "templates"
MAP_AREA = 60_000  # largest number of pixels of a picture of blur widths: they are smooth
COLOR_STOPS = 12  # of a colour bar
SHRINK = 0.9  # share of the free bytes of a page that pictures may fill once they have been reduced
MOST_REDUCTIONS = 4  # small pictures take more bytes for each pixel, so that one may not do


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture of a view on the page."""

    key: str
    title: str
    data: bytes  # JPEG or PNG


@dataclasses.dataclass(frozen=True)
class PageView:
    """One view on the page."""

    name: str
    width: int  # px of the photograph
    height: int
    shots: tuple[Shot, ...]
    kernels: KernelGrid | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One view on the page with its place, address and figures."""

    anchor: str
    view: PageView
    figures: tuple[tuple[str, str], ...]  # name, value
    bar: float | None = None  # length of the bar in the list of photographs, in [0, 1]; None: no bar
    bar_label: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """Everything that the page shows."""

    title: str
    subtitle: str
    scores: Sequence[Sequence[str]]  # protocol or kind of PSNR, PSNR, SSIM, LPIPS
    no_truth: Sequence[Sequence[str]]  # name, value, meaning
    with_truth: Sequence[Sequence[str]]  # the same; empty: the true blur is not known
    facts: Sequence[tuple[str, str]]
    settings: Sequence[dict[str, Any]]  # see facts.list_settings
    software: Sequence[tuple[str, str]]
    photographs: Sequence[Entry]  # from worst to sharpest
    held_out: Sequence[Entry]
    ranking: str  # how the photographs are sorted
    charts: Sequence[Chart]
    stages: Sequence[str]
    cameras: CameraMap
    limit_px: float  # blur width with the brightest colour
    has_blur_model: bool


def make_training_view(
    view: TrainingPictures, in_place: UInt8[np.ndarray, "_H _W 3"] | None, *, limit_px: float, num_views: int, area: int
) -> PageView:
    """Encodes the pictures of one training view for the page.

    Args:
      view: its pictures.
      in_place: its kernels over the photograph; None: no blur model.
      limit_px: blur width with the brightest colour, px.
      num_views: training views of the page: kernels of all of them must fit.
      area: largest number of pixels of a picture.
    """
    shots = [_jpeg("photo", "Photograph", view.photo, area)]
    if view.blur is not None and in_place is not None:
        shots += [_jpeg("kernels", "Blur found: kernels", in_place, area), _widths(view.blur, limit_px, area)]
    blurred = "Re-blurred render" if view.blur is not None else "Render"
    if view.blur is not None:
        shots.append(_jpeg("sharp", "Without blur", view.sharp, area))
    shots.append(_jpeg("blurred", blurred, view.blurred, area))
    shots.append(_jpeg("error", f"Error of the {blurred.lower()}", draw_error(view.blurred, view.photo), area))
    kernels = None if view.blur is None else _thin(view.blur.grid, num_views)
    height, width = view.photo.shape[:2]
    return PageView(view.name, width, height, tuple(shots), kernels)


def make_held_out_view(view: HeldOutPictures, *, area: int) -> PageView:
    """Encodes the pictures of one held-out view for the page."""
    height, width = view.photo.shape[:2]
    shots = (
        _jpeg("photo", "Held-out photograph", view.photo, area),
        _jpeg("sharp", "Render", view.sharp, area),
        _jpeg("error", "Error of the render", draw_error(view.sharp, view.photo), area),
    )
    return PageView(view.name, width, height, shots)


def _jpeg(key: str, title: str, picture: np.ndarray, area: int) -> Shot:
    return Shot(key, title, embed.shrink_to_jpeg(picture, area))


def _widths(blur: ViewBlur, limit_px: float, area: int) -> Shot:
    every = max(1, math.ceil((blur.reach_px.size / min(MAP_AREA, area / 4)) ** 0.5))
    return Shot("widths", "Blur width", embed.encode_indexed(blur.reach_px[::every, ::every] / limit_px))


def _thin(grid: KernelGrid, num_views: int) -> KernelGrid:
    """The kernels that fit into the page: all of them, or fewer on a coarser grid."""
    rows, columns, side, _ = grid.kernels.shape
    ratio = min(1.0, embed.choose_num_kernels(num_views, side) / (rows * columns)) ** 0.5
    return grid.pick(max(1, int(ratio * rows)), max(1, int(ratio * columns)))


def describe_kernels(grid: KernelGrid) -> dict[str, Any]:
    """What the page's script needs to know of the kernels, beside their picture: JSON."""
    rows, columns, side, _ = grid.kernels.shape
    return {
        "rows": rows,
        "columns": columns,
        "side": side,
        "pxPerTap": grid.px_per_tap,
        "fullWeight": round(grid.full_weight, 4),
        "widths": [round(float(x), 2) for x in grid.widths_px.ravel()],
        "directions": [round(float(x)) % 180 for x in grid.directions_deg.ravel()],
        "masks": [round(float(x), 2) for x in grid.masks.ravel()],
    }


def write_page(path: str | os.PathLike, page: Page) -> int:
    """Writes the page, and returns its size in bytes, at most PAGE_BYTES unless its texts alone are larger.

    Raises:
      UserError: the path cannot be written.
    """
    html = render_page(page).encode()
    for _ in range(MOST_REDUCTIONS):
        if len(html) <= embed.PAGE_BYTES:
            break
        pictures = sum(len(shot.data) for shot in _jpegs(page)) * embed.BASE64
        ratio = SHRINK * max(0.0, embed.PAGE_BYTES - (len(html) - pictures)) / pictures
        page = _reduce(page, ratio)
        html = render_page(page).encode()
    write_atomic(path, html)
    return len(html)


def _jpegs(page: Page) -> list[Shot]:
    shots = [shot for entry in (*page.photographs, *page.held_out) for shot in entry.view.shots]
    return [shot for shot in shots if shot.key != "widths"]


def _reduce(page: Page, ratio: float) -> Page:
    """The page with `ratio` times as many pixels in its JPEGs."""

    def reduce(entry: Entry) -> Entry:
        shots = [
            shot if shot.key == "widths" else dataclasses.replace(shot, data=embed.reduce_jpeg(shot.data, ratio))
            for shot in entry.view.shots
        ]
        return dataclasses.replace(entry, view=dataclasses.replace(entry.view, shots=tuple(shots)))

    photographs, held_out = ([*map(reduce, entries)] for entries in (page.photographs, page.held_out))
    return dataclasses.replace(page, photographs=photographs, held_out=held_out)


def render_page(page: Page) -> str:
    """The HTML of the page. Every text is escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    environment.filters |= {
        "uri": embed.to_uri,
        "kernels": describe_kernels,
        "atlas": embed.encode_kernels,
    }
    colors = palette()[np.linspace(0, 255, COLOR_STOPS).astype(int)]
    stops = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in colors)
    return environment.get_template("report.html.j2").render(page=page, stops=stops, error_limit=ERROR_LIMIT)
