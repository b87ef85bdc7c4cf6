"""Curves of training, as coordinates for the SVG of the page."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from bags_jax.report.history import Series

MOST_POINTS = 400  # of a curve
LEAST_SPAN = 0.02  # of a linear axis that does not begin at 0, over its largest number
MOST_TICKS = 5  # of a logarithmic axis


@dataclasses.dataclass(frozen=True)
class Tick:
    """A grid line of a chart: its place in px and its label."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """One curve as an SVG of width x height px."""

    title: str
    last: str  # the last value
    width: int
    height: int
    path: str  # of the curve: M x,y L x,y ..
    end: tuple[float, float]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    stages: tuple[float, ...]  # x of each stage that starts after step 0


def draw_chart(
    series: Series, *, title: str, num_steps: int, starts: Sequence[int], size: tuple[int, int], log: bool = False
) -> Chart:
    """Lays out one curve over the steps of training.

    Args:
      series: the scalar.
      title: above the chart.
      num_steps: right end of the horizontal axis.
      starts: first step of every stage.
      size: width and height of the chart, px.
      log: logarithmic vertical axis, where all values are positive.
    """
    width, height = size
    every = max(1, -(-len(series.steps) // MOST_POINTS))
    steps, values = np.array(series.steps, float), np.array(series.values)
    kept = np.unique([*range(0, len(steps), every), len(steps) - 1])
    log = log and bool(values.min() > 0)
    ticks = log_ticks(values.min(), values.max()) if log else linear_ticks(values.min(), values.max())
    place = np.log10 if log else np.asarray
    low, high = float(place(ticks[0])), float(place(ticks[-1]))
    x = steps[kept] / max(num_steps, 1) * width
    y = height * (1.0 - (place(values[kept]) - low) / max(high - low, 1e-12))
    return Chart(
        title=title,
        last=format_number(float(values[-1])),
        width=width,
        height=height,
        path="M" + " L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)),
        end=(round(float(x[-1]), 1), round(float(y[-1]), 1)),
        x_ticks=tuple(
            Tick(t / num_steps * width, format_number(t)) for t in linear_ticks(0, num_steps)[1:] if t <= num_steps
        ),
        y_ticks=tuple(
            Tick(round(height * (1.0 - (float(place(t)) - low) / max(high - low, 1e-12)), 1), format_number(t))
            for t in ticks
        ),
        stages=tuple(round(start / max(num_steps, 1) * width, 1) for start in starts if start > 0),
    )


def linear_ticks(low: float, high: float, *, count: int = 3) -> list[float]:
    """Round numbers that enclose a range, about `count` intervals."""
    if high - low <= LEAST_SPAN * abs(high):
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    span = (high - low) / count
    power = 10.0 ** math.floor(math.log10(span))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a positive range: 1, 2, 5, 10 .., or powers of ten where it is long; at most MOST_TICKS."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    for every, multiples in ((1, (1, 2, 5)), *((n, (1,)) for n in range(1, last - first + 2))):
        ticks = [m * 10.0**n for n in range(first, last + every + 1, every) for m in multiples]
        start = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
        stop = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9) and i > start)
        if stop - start < MOST_TICKS:
            return ticks[start : stop + 1]
    return [10.0**first, 10.0 ** (last + 1)]


def format_number(value: float) -> str:
    """Three significant digits, with k and M for thousands and millions."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
