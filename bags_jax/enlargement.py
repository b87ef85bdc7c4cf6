"""Enlargement of the blur kernels where a stage begins, if the blur that is found reaches the edge of those before it.

The stages to come get kernels that reach LARGER times as far as those of the stage that ends. Their heads have trained nothing
yet: they start anew, and take over the kernels as between any two stages. The settings in the working directory then have the
sizes that are trained, and beside them those that were given: a run that goes on, or is opened, follows them.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax import parallel
from bags_jax.dispatch import make_job_optimizers
from bags_jax.job import Job, MakeModel, with_blur
from bags_jax.run import Run
from bags_jax.scene.initialize import init_networks
from bags_jax.schedule import Stage
from bags_jax.settings import Blur, Settings
from bags_jax.snapshot import EDGE_SHARE, LARGER, measure_edge
from bags_jax.structs import TrainState
from bags_jax.training_views import render_training_views
from bags_jax.workdir import CONFIG_FILE, read_settings, save_settings

LARGEST_KERNEL = 33  # px: the time of a step grows with the square
SMALLEST_MEASURED = 5  # px: in kernels of 3 px any blur has weight at the edge
NUM_VIEWS = 8  # views that are measured: the blurriest ones


class Enlarger:
    """Enlarges the kernels of a training run, and writes their sizes into its working directory.

    Args:
      workdir: folder of the run.
      settings: as they are saved in it.
      make_model: as `train` got it.
      say: gets one line for each enlargement.
    """

    def __init__(
        self, workdir: pathlib.Path, settings: Settings, make_model: MakeModel | None, say: Callable[[str], None]
    ):
        self._workdir, self._settings, self._make_model, self._say = workdir, settings, make_model, say
        self._decided = set(settings.blur.enlarged_at)  # a dispatch that fell short begins its stage again

    def enlarge(self, job: Job, stage: Stage, state: TrainState) -> tuple[Job, TrainState] | None:
        """The job and the state that go on with larger kernels from a stage that begins; None: they are large enough."""
        before, blur = find_source(job, stage), self._settings.blur
        if not blur.enlarge_kernels or before is None or stage.head in self._decided:
            return None
        self._decided.add(stage.head)
        sizes = choose_sizes(job, before)
        if sizes == blur.kernel_sizes or (share := _share(measure_edges(job, state))) < EDGE_SHARE:
            return None
        self._settings = dataclasses.replace(self._settings, blur=_enlarge(blur, sizes, stage.head))
        if parallel.is_first():
            save_settings(self._workdir, self._settings)
        self._say(
            f"the blur reaches the edge of the {before.kernel_size} x {before.kernel_size} kernels at scale {before.scale:g} "
            f"({share:.0%} of the weight): the kernels to come are larger, blur.kernel_sizes={','.join(map(str, sizes))}"
        )
        job = with_blur(job, _enlarge(job.settings.blur, sizes, stage.head), make_model=self._make_model)
        return job, fit_network(job, state)


def recall_enlargement(settings: Settings, workdir: str | pathlib.Path) -> Settings:
    """The settings with the kernels of the run in a directory, where training enlarged those that `settings` gives."""
    path, blur = pathlib.Path(workdir).expanduser(), settings.blur
    if not blur.enlarge_kernels or not (path / CONFIG_FILE).is_file():
        return settings
    saved = read_settings(path).blur
    if not saved.enlarged_at or blur.kernel_sizes not in (saved.given_kernel_sizes, saved.kernel_sizes):
        return settings
    kernels = {name: getattr(saved, name) for name in ("kernel_sizes", "given_kernel_sizes", "enlarged_at")}
    return dataclasses.replace(settings, blur=dataclasses.replace(blur, **kernels))


def find_source(job: Job, stage: Stage) -> Stage | None:
    """The stage whose kernels a stage of a larger image scale takes over; None: there is none, or its kernels are too small."""
    for before in job.stages:
        if before.stop == stage.start and before.scale < stage.scale and before.network == stage.network:
            return before if before.kernel_size >= SMALLEST_MEASURED and stage.kernel_size else None
    return None


def choose_sizes(job: Job, before: Stage) -> tuple[int, ...]:
    """Sides of the kernels of all stages: those after `before` reach LARGER times as far in the scene, or as far as they did."""
    height, width = np.min([job.scene.images[i].shape[:2] for i in job.scene.train_ids], axis=0)
    sizes = list(job.settings.blur.kernel_sizes)
    reach = LARGER * (before.kernel_size // 2) / before.scale  # px at full image scale
    for head in range(before.head + 1, len(sizes)):
        scale = job.settings.stages.scales[head]
        side = 2 * round(reach * scale) + 1
        fitting = (min(LARGEST_KERNEL, round(width * scale), round(height * scale)) - 1) // 2 * 2 + 1
        sizes[head] = max(sizes[head], min(side, fitting))
    return tuple(sizes)


def measure_edges(job: Job, state: TrainState) -> float:
    """Mean share of the kernels' weight in their outermost taps, in the blurriest training views, at the stage that ends."""
    bare = dataclasses.replace(state, gaussians_opt=(), network_opt=(), poses_opt=(), exposures_opt=())
    run = Run(pathlib.Path(), job, jax.tree.map(jnp.asarray, jax.device_get(bare)))
    blurriest = np.argsort(-np.asarray(run.state.blur_px), kind="stable")[:NUM_VIEWS]
    samples = [view.blur.samples for view in render_training_views(run, blurriest.tolist()) if view.blur is not None]
    return float(np.mean([measure_edge(np.asarray(x.kernels)) for x in samples]))


def _share(number: float) -> float:
    """The number of process 0, in all processes: they must decide alike."""
    return float(parallel.share_text(repr(number)))


def _enlarge(blur: Blur, sizes: tuple[int, ...], head: int) -> Blur:
    """The settings with the sizes that a stage, `head`, and those after it begin with."""
    given = blur.given_kernel_sizes or blur.kernel_sizes
    return dataclasses.replace(
        blur, kernel_sizes=sizes, given_kernel_sizes=given, enlarged_at=(*blur.enlarged_at, head)
    )


def fit_network(job: Job, state: TrainState) -> TrainState:
    """The state of a run whose kernels were enlarged, with first parameters and moments of 0 where its own do not fit them.

    A state of a later stage than the last that was enlarged is returned as it is: all its parameters fit.
    """
    enlarged = [stage.start for stage in job.stages if stage.head in job.settings.blur.enlarged_at]
    if job.model is None or not enlarged or int(state.step) > max(enlarged):
        return state
    first = init_networks(job.model, len(state.network), job.settings.seed)
    first_opt = make_job_optimizers(job).network.init(first)
    network, network_opt = jax.tree.map(
        lambda own, new: own if own.shape == new.shape else new, (state.network, state.network_opt), (first, first_opt)
    )
    return dataclasses.replace(state, network=network, network_opt=network_opt)
