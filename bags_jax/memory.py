"""Forecast of the memory of training, made before the first step for the largest scene that the settings allow."""

import dataclasses

import jax
import jax.numpy as jnp

from bags_jax.data.pyramid import training_sizes
from bags_jax.errors import UserError
from bags_jax.feed import make_feed, measure_photographs
from bags_jax.job import Job
from bags_jax.platforms import current_platform, find_free_memory
from bags_jax.scene.rows import grow, map_rows
from bags_jax.structs import TrainState


@dataclasses.dataclass(frozen=True)
class StepBytes:
    """Temporaries of a compiled step: above what XLA reports, up to 5 times, for plain splatting and BAGS.

    On a GPU a Gaussian has 70 to 140 bytes with one view a step on one device, and 180 more with several.
    """

    fixed: int  # on a GPU, also for the workspaces of libraries
    per_pixel: int  # of the canvas
    per_gaussian: int
    per_seen: int  # for each Gaussian of other devices that a device draws, where they are split; at most all

    def temporaries(self, canvas: int, own: int, seen: int = 0) -> int:
        """Bytes for a canvas of so many pixels.

        Args:
          canvas: pixels that are rendered, the margin included.
          own, seen: numbers of Gaussians of this device, and of other devices that it draws.
        """
        return self.fixed + self.per_pixel * canvas + self.per_gaussian * own + self.per_seen * seen


HOST_BYTES = StepBytes(fixed=0, per_pixel=620, per_gaussian=900, per_seen=400)
GPU_BYTES = StepBytes(fixed=400_000_000, per_pixel=300, per_gaussian=350, per_seen=400)  # compiled for an H200
COPIES = 2  # of the state: the one in training, and the one that a checkpoint is written from
GIGABYTE = 1e9


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Bytes on each device."""

    state: int  # all copies
    photographs: int  # at all image scales, or of two dispatches
    temporaries: int

    @property
    def total(self) -> int:
        return self.state + self.photographs + self.temporaries

    def describe(self) -> str:
        """The sum and its parts."""
        parts = ((name, getattr(self, name)) for name in ("state", "photographs", "temporaries"))
        return f"{self.total / GIGABYTE:.1f} GB ({', '.join(f'{name} {size / GIGABYTE:.1f}' for name, size in parts)})"


def forecast_memory(job: Job, template: TrainState, *, num_shards: int = 1) -> Forecast:
    """Forecasts the memory of a job with as many Gaussians as may be.

    Args:
      template: shapes of its state, of any number of rows.
      num_shards: number of devices that the Gaussians are split over.
    """
    rows = job.settings.max_gaussians
    full = jax.eval_shape(lambda state: grow(state, rows), template) if template.alive.shape[0] < rows else template
    scene, canvas, per_scale, feed = job.scene, 0, measure_photographs(job), make_feed(job)
    photographs = 2 * max(per_scale) * feed.num_slots // len(scene.train_ids) if feed else sum(per_scale)
    for stage in job.stages:
        height, width = training_sizes(scene, stage.scale).max(axis=0) + 2 * stage.margin
        canvas = max(canvas, int(height * width))
    total = full.alive.shape[0]
    own = -(-total // num_shards)
    full = map_rows(full, lambda x: jax.ShapeDtypeStruct((own, *x.shape[1:]), x.dtype))
    state = sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(full))
    step = GPU_BYTES if current_platform() == "gpu" else HOST_BYTES
    return Forecast(COPIES * state, photographs, step.temporaries(canvas, own, total - own))


def check_memory(job: Job, template: TrainState, *, num_shards: int = 1) -> str:
    """One line that says what training will need on each device: see `forecast_memory`.

    Raises:
      UserError: it needs more than there is.
    """
    forecast, free = forecast_memory(job, template, num_shards=num_shards), find_free_memory()
    gaussians = f"{job.settings.max_gaussians} Gaussians"
    if free is not None and forecast.total > free:
        raise UserError(
            f"training with up to {gaussians} needs {forecast.describe()}, and the device has {free / GIGABYTE:.1f} GB: lower "
            "config.max_gaussians, or raise config.data.factor"
        )
    return f"memory with {gaussians}: {forecast.describe()}"
