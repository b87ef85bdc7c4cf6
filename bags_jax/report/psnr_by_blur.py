"""PSNR of the renders without blur of the training views against their sharp truth, by the true blur of the photographs.

A view belongs to the bin of its mean true blur (RMS, px). A mean over all views hides whether a method mends strong blur, or
only leaves sharp photographs alone.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from bags_jax.metrics import PSNR_CAP, psnr_of_mse

EDGES_PX = (0.0, 0.5, 1.0, 2.0, math.inf)  # a view of exactly 1 px lies above the edge of 1
NO_TRUTH = "Sharp truth or true blur of the photographs is not known: PSNR by blur is not computed"


@dataclasses.dataclass(frozen=True)
class TrainingView:
    """One training view beside its truth."""

    blur_px: float  # mean over its photograph of the true blur, RMS
    psnr: float  # of the render without blur, dB


def score_render(
    render: Float[np.ndarray, "H W 3"],
    truth: UInt8[np.ndarray, "H W 3"],
    blur_px: Float[np.ndarray, "H W"],
    valid: Bool[np.ndarray, "H W"] | None = None,
) -> TrainingView:
    """Scores the render without blur of one training view over its valid pixels.

    Args:
      render: sRGB; clipped to [0, 1].
      truth: sharp, sRGB.
      blur_px: true blur of the photograph, RMS px.
      valid: pixels to score; None: all.
    """
    used = np.ones(blur_px.shape, bool) if valid is None else valid
    error = np.square(np.clip(render, 0.0, 1.0) - truth / 255.0)[used].mean()
    return TrainingView(float(blur_px[used].mean()), psnr_of_mse(float(error), cap=PSNR_CAP))


def name_bins() -> list[str]:
    """Names of the bins, in the order of EDGES_PX."""
    names = [f"{low:g} to {high:g} px" for low, high in itertools.pairwise(EDGES_PX)]
    return [f"under {EDGES_PX[1]:g} px", *names[1:-1], f"{EDGES_PX[-2]:g} px and more"]


def average_by_blur(views: Sequence[TrainingView]) -> dict[str, dict[str, float | int | None]]:
    """Returns the mean PSNR and the number of the views of each bin; the PSNR of an empty bin is None."""
    bins = {}
    for name, (low, high) in zip(name_bins(), itertools.pairwise(EDGES_PX), strict=True):
        found = [view.psnr for view in views if low <= view.blur_px < high]
        bins[name] = {"PSNR": math.fsum(found) / len(found) if found else None, "num_views": len(found)}
    return bins


def format_rows(bins: dict[str, dict[str, float | int | None]] | None) -> list[list[str]]:
    """Formats the bins as rows of the report: name, value, and a text that says how to read the value; [] for None."""
    if bins is None:
        return []
    return [
        [
            f"PSNR where the blur is {name}",
            f"{bin['PSNR']:.2f}",
            f"dB, against sharp truth; photographs: {bin['num_views']}",
        ]
        for name, bin in bins.items()
        if bin["PSNR"] is not None
    ]
