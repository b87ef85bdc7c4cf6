"""Figures of a run on a scene whose true blur is known: an embedded scene, or photographs that were coarsened here.

rank correlation   Spearman's, of the blur width that was found and the true one: over all pixels (blocks) of all training
                   views, and over the means of the views. 1: the same order.
AUC of the mask    area under the ROC curve of the mask (the share of a pixel's light that comes from other pixels) for
                   "blurred by more than BLURRED_PX". 1: it tells blurred pixels from sharp ones; 0.5: it says nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

BLURRED_PX = 0.5  # RMS


@dataclasses.dataclass(frozen=True)
class FoundBlur:
    """Blur of one training view beside its truth, for each block of pixels, px of the photograph."""

    mask: Float[np.ndarray, "h w"]
    widths: Float[np.ndarray, "h w"]  # RMS
    truth: Float[np.ndarray, "h w"]  # RMS


def mean_of_blocks(values: Float[np.ndarray, "H W"], blocks: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    """Mean of a picture over each of h x w equal blocks; the last ones may be cut off by its border."""
    rows, columns = (np.arange(n) * count // n for n, count in zip(values.shape, blocks, strict=True))
    places = rows[:, None] * blocks[1] + columns[None, :]
    sums = np.bincount(places.ravel(), values.ravel(), minlength=blocks[0] * blocks[1])
    counts = np.bincount(places.ravel(), minlength=blocks[0] * blocks[1])
    return (sums / np.maximum(counts, 1)).reshape(blocks)


def rank_correlation(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float | None:
    """Spearman's rank correlation; equal numbers share their rank. None: one side is constant."""
    import scipy.stats

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(scipy.stats.rankdata(a), scipy.stats.rankdata(b))[0, 1])


def area_under_roc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float | None:
    """Probability that a positive has the higher score than a negative (ties count half). None: one class is empty."""
    import scipy.stats

    num = int(positive.sum())
    if not 0 < num < len(positive):
        return None
    ranks = float(scipy.stats.rankdata(scores)[positive].sum())
    return (ranks - num * (num + 1) / 2) / (num * (len(positive) - num))


def score_blur(views: Sequence[FoundBlur]) -> dict[str, float | None]:
    """Compares the blur of all training views with the truth; None where a figure has no meaning."""
    mask, widths, truth = (
        np.concatenate([getattr(v, name).ravel() for v in views]) for name in ("mask", "widths", "truth")
    )
    means = np.array([[view.widths.mean(), view.truth.mean()] for view in views])
    return {
        "pixel_rank_correlation": rank_correlation(widths, truth),
        "view_rank_correlation": rank_correlation(means[:, 0], means[:, 1]),
        "mask_AUC": area_under_roc(mask, truth > BLURRED_PX),
    }


def format_rows(scores: Mapping[str, float | None] | None) -> list[list[str]]:
    """Formats the figures as rows of the report: name, value, and a text that says how to read the value."""
    if scores is None:
        return []
    cells = {name: "-" if value is None else f"{value:.3f}" for name, value in scores.items()}
    return [
        [
            "blur width against the truth, pixels",
            cells["pixel_rank_correlation"],
            "rank correlation; 1: the same order",
        ],
        ["blur width against the truth, photographs", cells["view_rank_correlation"], "rank correlation of the means"],
        ["mask against the truth", cells["mask_AUC"], f"area under the ROC curve, blurred by over {BLURRED_PX:g} px"],
    ]
