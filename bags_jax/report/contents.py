"""Collects the contents of the page from an evaluation: views with their figures, curves, and the table of all views."""

from collections.abc import Mapping, Sequence
from typing import Any

from bags_jax.report.charts import Chart, draw_chart
from bags_jax.report.history import Series
from bags_jax.report.page import Entry, PageView

PROTOCOLS = {"deblur_nerf": "Deblur-NeRF", "gaussian_splatting": "3D Gaussian Splatting"}
SCORES = ("PSNR", "SSIM", "LPIPS")
ALIGNED = {  # title: figure of results["shift_aligned"]
    "After the best sub-pixel shift, without the border": "PSNR",
    "Not shifted, without the border": "unshifted_PSNR",
}
RANKED_BY_BLUR = "From the blurriest to the sharpest: by the mean RMS width of the blur, in pixels of the photograph."
RANKED_BY_PSNR = "Plain splatting estimates no blur: sorted by the PSNR of the render, the worst first."
CHART_PX = (280, 110)
TITLES = {
    "psnr": "PSNR of the training views, dB",
    "num_gaussians": "Gaussians",
    "blur_px": "Blur of the training views, px",
    "total": "Loss",
}
LINEAR = ("psnr", "num_gaussians", "blur_px")
NO_CURVES = ("num_intersections", "image_scale")


def list_photographs(
    views: Sequence[PageView], scores: Mapping[str, Mapping], ranked: Sequence[Mapping[str, Any]]
) -> list[Entry]:
    """The training views, from worst to sharpest.

    Args:
      views: their pictures.
      scores: by name, see no_truth.score_training_view.
      ranked: see blur_pictures.rank_views; empty without a blur model: sorted by PSNR.
    """
    blurs = {row["name"]: row for row in ranked}
    order = list(blurs) or sorted(scores, key=lambda name: scores[name]["reblur_PSNR"])
    by_name = {view.name: view for view in views}
    worst = max([row["blur_px"] for row in ranked], default=0.0) or 1.0
    best = max(score["reblur_PSNR"] for score in scores.values()) or 1.0
    entries = []
    for rank, name in enumerate(order, start=1):
        score, blur = scores[name], blurs.get(name)
        psnr = f"{score['reblur_PSNR']:.2f} dB"
        figures = [("re-blur PSNR" if blur else "PSNR", psnr), ("sharpness gain", format_gain(score["sharpness_gain"]))]
        if blur:
            figures = [
                ("blur", f"{blur['blur_px']:.2f} px"),
                ("direction", f"{blur['direction_deg']:.0f}°"),
                ("mask", f"{blur['mean_mask']:.2f}"),
                *figures,
            ]
        bar = blur["blur_px"] / worst if blur else max(0.0, score["reblur_PSNR"] / best)
        label = f"{blur['blur_px']:.2f} px" if blur else psnr
        entries.append(Entry(photograph_anchor(rank), by_name[name], tuple(figures), bar, label))
    return entries


def photograph_anchor(rank: int) -> str:
    """Address of a training view on the page."""
    return f"photo-{rank}"


def list_held_out(
    views: Sequence[PageView], per_view: Mapping[str, Mapping], fitted: Mapping[str, Mapping]
) -> list[Entry]:
    """The held-out views in their order, with the scores of both protocols."""
    entries = []
    for number, view in enumerate(views, start=1):
        scores = per_view[view.name]
        aligned = scores["shift_aligned"]
        figures = [
            (f"{name} ({short})", format_score(name, scores[protocol][name]))
            for protocol, short in (("deblur_nerf", "Deblur-NeRF"), ("gaussian_splatting", "3DGS"))
            for name in SCORES
        ]
        figures += [("aligned PSNR", format_score("PSNR", aligned["PSNR"]))]
        figures += [("PSNR of that crop, not shifted", format_score("PSNR", aligned["unshifted_PSNR"]))]
        figures += [("fitted re-blur PSNR", format_score("PSNR", fitted[view.name]["fitted_PSNR"]))]
        entries.append(Entry(f"held-out-{number}", view, tuple(figures)))
    return entries


def format_score(name: str, value: float | None) -> str:
    """PSNR with 2 decimals, SSIM and LPIPS with 3; "-" for None."""
    return "-" if value is None else f"{value:.{2 if name == 'PSNR' else 3}f}"


def format_gain(value: float | None) -> str:
    """A sharpness gain; "-" for None."""
    return "-" if value is None else f"{value:.2f} x"


def list_charts(series: Mapping[str, Series], *, num_steps: int, starts: Sequence[int]) -> list[Chart]:
    """The curves of PSNR, number of Gaussians, blur, loss and every term of the loss that is not always 0."""
    names = [name for name in TITLES if name in series]
    names += [name for name in series if name not in (*TITLES, *NO_CURVES) and any(series[name].values)]
    return [
        draw_chart(
            series[name],
            title=TITLES.get(name, f"loss term {name}"),
            num_steps=num_steps,
            starts=starts,
            size=CHART_PX,
            log=name not in LINEAR,
        )
        for name in names
    ]


def list_view_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each view, held-out views first: its name, its part of the capture, and its scores."""
    no_truth, rows = results["no_truth"]["per_view"], []
    keys = [f"{protocol}_{name}" for protocol in PROTOCOLS for name in SCORES]
    keys += ["shift_aligned_PSNR", "unshifted_PSNR", "fitted_PSNR", "reblur_PSNR", "sharpness_gain"]
    for name, view in results["per_view"].items():
        found = {f"{protocol}_{score}": view[protocol][score] for protocol in PROTOCOLS for score in SCORES}
        found["shift_aligned_PSNR"] = view["shift_aligned"]["PSNR"]
        found["unshifted_PSNR"] = view["shift_aligned"]["unshifted_PSNR"]
        rows.append(("held out", name, {**found, **no_truth["held_out"][name]}))
    rows += [("training", name, view) for name, view in no_truth["training"].items()]
    return [{"view": name, "part": part, **{key: found.get(key) for key in keys}} for part, name, found in rows]
