"""A snapshot of a scene in training: pictures for TensorBoard, and how far its blur reaches in the kernels."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from bags_jax.job import Job
from bags_jax.report.pictures import to_uint8
from bags_jax.report.sheets import draw_blur_sheet
from bags_jax.report.views import TrainingPictures
from bags_jax.run import Run, render_scene_views
from bags_jax.run_report import OVERLAY_AREA, choose_limit, draw_in_place, take_pictures
from bags_jax.structs import TrainState
from bags_jax.training_views import render_training_views

EDGE_SHARE = 0.05  # weight of the outermost taps, from which larger kernels are advised
LARGER = 1.5  # side of the kernels that are advised, relative to those that are too small


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Pictures by name, and the share of the kernels' weight in their outermost taps, where there is a blur model."""

    pictures: dict[str, UInt8[np.ndarray, "_H _W 3"]]
    edge_share: float | None


def take_snapshot(job: Job, state: TrainState) -> Snapshot:
    """Draws the first held-out view beside its photograph, and the blurriest training view with its kernels."""
    bare = dataclasses.replace(state, gaussians_opt=(), network_opt=(), poses_opt=(), exposures_opt=())
    run = Run(pathlib.Path(), job, jax.tree.map(jnp.asarray, jax.device_get(bare)))
    pictures = {}
    for i in job.scene.test_ids[:1]:
        render = to_uint8(np.asarray(next(render_scene_views(run, [i])).image))
        pictures["held-out view, render | photograph"] = np.concatenate([render, job.scene.images[i]], axis=1)
    blurriest = int(jnp.argmax(run.state.blur_px))
    view = take_pictures(
        run, job.scene.names[job.scene.train_ids[blurriest]], next(render_training_views(run, [blurriest]))
    )
    pictures["blurriest photograph"] = draw_training_view(run, view)
    return Snapshot(pictures, None if view.blur is None else measure_edge(view.blur.grid.kernels))


def draw_training_view(run: Run, view: TrainingPictures) -> UInt8[np.ndarray, "_H _W 3"]:
    """The sheet of a training view; without a blur model, the photograph beside the render."""
    if view.blur is None:
        return np.concatenate([view.photo, view.sharp], axis=1)
    in_place = draw_in_place(view.photo, view.blur, area=OVERLAY_AREA)
    return draw_blur_sheet(view, view.blur, in_place, limit_px=choose_limit(run), title=view.name)


def measure_edge(kernels: Float[np.ndarray, "gh gw K K"]) -> float:
    """Share of the weight of all kernels of a view in their outermost taps."""
    inner = kernels[..., 1:-1, 1:-1].sum(axis=(-2, -1))
    return float(np.mean(1.0 - inner))


def advise_kernels(snapshot: Snapshot, job: Job) -> str:
    """One line that advises larger kernels, where the blur of the last stage reaches their edge; "" elsewhere."""
    sizes = job.settings.blur.kernel_sizes
    if snapshot.edge_share is None or snapshot.edge_share < EDGE_SHARE:
        return ""
    larger = ",".join(str(int(LARGER * size) // 2 * 2 + 1) for size in sizes)
    return (
        f"the blur of the blurriest photograph reaches the edge of its {sizes[-1]} x {sizes[-1]} kernels "
        f"({snapshot.edge_share:.0%} of the weight): train again with --config.blur.kernel_sizes={larger}"
    )
