"""The report of a run: the pictures of each view as the page needs them, and everything else that stands on it."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from bags_jax.report import embed, psnr_by_blur, with_truth
from bags_jax.report.blur_pictures import draw_kernels_in_place, rank_views
from bags_jax.report.camera_map import CameraMap, MapView, draw_map
from bags_jax.report.contents import (
    ALIGNED,
    PROTOCOLS,
    RANKED_BY_BLUR,
    RANKED_BY_PSNR,
    list_charts,
    list_held_out,
    list_photographs,
)
from bags_jax.report.facts import format_seconds, list_settings, list_software
from bags_jax.report.history import read_seconds, read_series
from bags_jax.report.no_truth import format_rows
from bags_jax.report.page import Entry, Page, PageView
from bags_jax.report.pictures import to_uint8
from bags_jax.report.tables import format_scores
from bags_jax.report.views import KernelGrid, TrainingPictures, ViewBlur
from bags_jax.run import Run, refined_viewmats
from bags_jax.training_views import TrainingView
from bags_jax.workdir import read_settings

WIDTH_LIMITS_PX = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)  # ends of the scale of blur widths
WIDTH_HEADROOM = 1.3  # the widest pixels of a view over its mean, about
OVERLAY_AREA, OVERLAY_ZOOM = 400_000, 6  # px of the picture of kernels in place; small photographs are enlarged for it
MAP_WIDTH = 900  # px
MOST_POINTS = 100_000  # points of the scene from which those of the map are taken


def take_pictures(run: Run, name: str, view: TrainingView) -> TrainingPictures:
    """The pictures and the blur of one training view, on the host."""
    blur = None
    if view.blur is not None:
        samples = view.blur.samples
        fields = (samples.kernels, samples.masks, samples.widths, samples.directions)
        grid = KernelGrid(*map(np.asarray, fields), px_per_tap=1.0 / run.stage.scale)
        blur = ViewBlur(grid, np.asarray(view.blur.widths))
    return TrainingPictures(name, view.photo, to_uint8(view.sharp), to_uint8(view.blurred), blur)


def draw_in_place(photo: UInt8[np.ndarray, "H W 3"], blur: ViewBlur, *, area: int) -> UInt8[np.ndarray, "_H _W 3"]:
    """Draws the kernels of a view over its photograph, at about the size that the page shows."""
    height, width = photo.shape[:2]
    _, width = embed.fit_size(height * OVERLAY_ZOOM, width * OVERLAY_ZOOM, min(area, OVERLAY_AREA))
    return draw_kernels_in_place(photo, blur.grid, width=width)


def choose_limit(run: Run) -> float:
    """Blur width with the brightest colour in the pictures of all views, px: a round number above the widest views."""
    wanted = WIDTH_HEADROOM * float(jnp.max(run.state.blur_px, initial=0.0))
    return next((limit for limit in WIDTH_LIMITS_PX if limit >= wanted), WIDTH_LIMITS_PX[-1])


def choose_page_area(run: Run) -> int:
    """Largest number of pixels of a picture on the page."""
    shots = 5 if run.model is not None else 3
    return embed.choose_area(shots * len(run.scene.train_ids) + 3 * len(run.scene.test_ids))


def make_page(
    run: Run, results: Mapping, photographs: Sequence[PageView], held_out: Sequence[PageView], blurs: Mapping
) -> Page:
    """The contents of the report.

    Args:
      run: the run.
      results: see evaluation.evaluate.
      photographs, held_out: training views and held-out views.
      blurs: figures of the blur of each training view by its name; empty without a blur model.
    """
    settings, ranked = read_settings(run.workdir), rank_views(blurs)
    entries = list_photographs(photographs, results["no_truth"]["per_view"]["training"], ranked)
    held_out_entries = list_held_out(held_out, results["per_view"], results["no_truth"]["per_view"]["held_out"])
    starts = [stage.start for stage in run.job.stages]
    psnrs = [(title, results["shift_aligned"][name]) for title, name in ALIGNED.items()]
    aligned = [[title, f"{psnr:.2f}", "", ""] for title, psnr in psnrs if psnr is not None]
    method = "BAGS" if run.model is not None else "Plain splatting"
    return Page(
        title=run.workdir.resolve().name,
        subtitle=f"{method}, step {results['step']} of {settings.num_steps}, {len(entries)} photographs, "
        f"{len(held_out)} held-out views",
        scores=[*([title, *format_scores(results[protocol])] for protocol, title in PROTOCOLS.items()), *aligned],
        no_truth=format_rows(results["no_truth"]),
        with_truth=[
            *with_truth.format_rows(results["true_blur"]),
            *psnr_by_blur.format_rows(results["PSNR_by_blur"]),
        ],
        facts=list_facts(run, results),
        settings=list_settings(settings),
        software=list_software(),
        photographs=entries,
        held_out=held_out_entries,
        ranking=RANKED_BY_BLUR if ranked else RANKED_BY_PSNR,
        charts=list_charts(read_series(run.workdir), num_steps=settings.num_steps, starts=starts),
        stages=[f"{stage.name}: steps {stage.start} to {stage.stop}" for stage in run.job.stages],
        cameras=draw_cameras(run, entries, held_out_entries, {row["name"]: row["blur_px"] for row in ranked}),
        limit_px=choose_limit(run),
        has_blur_model=bool(ranked),
    )


def list_facts(run: Run, results: Mapping) -> list[tuple[str, str]]:
    """Name and value of what the summary says of the run."""
    scene, data = run.scene, run.job.settings.data
    sizes = sorted({image.shape[1::-1] for image in scene.images})
    size = (
        f"{sizes[0][0]} × {sizes[0][1]} px" if len(sizes) == 1 else f"{len(sizes)} sizes, up to {max(sizes)[0]} px wide"
    )
    device = jax.devices()[0]
    return [
        ("Gaussians", f"{results['num_gaussians']:,}"),
        ("Training time", format_seconds(read_seconds(run.workdir))),
        ("Photographs", f"{len(scene.train_ids)} of {size}"),
        ("Capture", f"embedded scene, {run.job.settings.synthetic.blur}" if data.format == "procedural" else data.root),
        ("Last stage", run.stage.name),
        ("Poses", "refined" if run.job.pose_frame is not None else "as in the capture"),
        ("Evaluated on", device.device_kind if device.platform != "cpu" else "CPU"),
    ]


def draw_cameras(
    run: Run, photographs: Sequence[Entry], held_out: Sequence[Entry], blur_px: Mapping[str, float]
) -> CameraMap:
    """The map of the cameras, in the order of their names, with refined poses."""
    scene, viewmats = run.scene, refined_viewmats(run)
    links = {entry.view.name: entry.anchor for entry in (*photographs, *held_out)}
    views = [
        MapView(scene.names[i], viewmats[i], blur_px.get(scene.names[i]), links[scene.names[i]], held_out=is_held_out)
        for ids, is_held_out in ((scene.train_ids, False), (scene.test_ids, True))
        for i in ids
    ]
    means = np.asarray(run.state.gaussians.means)[np.asarray(run.state.alive)]
    return draw_map(views, means[:: max(1, len(means) // MOST_POINTS)], width=MAP_WIDTH)
