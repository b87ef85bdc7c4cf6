"""The photographs of the next steps, sent to the devices while the steps before them run.

Which views a step trains on is known beforehand: it depends on the seed and the step alone (step.draw_views). So a capture that is
larger than the devices stays on the host, and each dispatch gets its own photographs.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from bags_jax import parallel
from bags_jax.data.pyramid import make_bare_dataset, photograph_at, put_photograph, training_sizes
from bags_jax.errors import UserError
from bags_jax.job import Job
from bags_jax.platforms import find_free_memory
from bags_jax.step import view_at
from bags_jax.structs import Dataset

MOST_BYTES = 1 << 30  # of the photographs of one dispatch; two are on the devices at a time
SHARE_OF_DEVICE = 0.25  # that photographs may take where `data.resident` is auto
PLACES = ("auto", "device", "host")


class Feed:
    """Chooses and sends the photographs of dispatches.

    Attributes:
      most_steps: steps of the longest dispatch.
    """

    def __init__(self, *, seed: int, num_views: int, views_per_step: int, most_steps: int):
        self._seed, self._num_views, self._per_step, self.most_steps = seed, num_views, views_per_step, most_steps
        self._pictures: dict[float, list] = {}  # photographs with their masks or None, by image scale

    @property
    def num_slots(self) -> int:
        """Number of photographs that are sent for a dispatch."""
        return min(self._num_views, self.most_steps * self._per_step)

    def views_of(self, start: int, stop: int) -> Int[np.ndarray, "n"]:
        """The views of the steps from start to stop on all devices, each once, in order."""
        places = jnp.arange(start * self._per_step, stop * self._per_step)
        with jax.default_device(_host()):
            drawn = _draw(jnp.int32(self._seed), places, num_views=self._num_views)
        return np.unique(np.asarray(drawn))

    def begin(self, job: Job, scale: float) -> Dataset:
        """Prepares an image scale: returns what stays on the devices. Its photographs have the shapes of those of a dispatch."""
        scene = job.scene
        if scale not in self._pictures:
            keep = scene.spool.keep if scene.spool and scale != 1 else lambda array: array
            pairs = (photograph_at(scene, view, scale) for view in scene.train_ids)
            self._pictures[scale] = [tuple(x if x is None else keep(x) for x in pair) for pair in pairs]
        where = {"extent": job.extent, "near_plane": job.near_plane}
        bare = make_bare_dataset(scene, scale, num_rows=self.num_slots, **where)
        return dataclasses.replace(bare, slots=np.zeros(self._num_views, np.int32))

    def send(self, dataset: Dataset, scale: float, start: int, stop: int, *, num_devices: int) -> Dataset:
        """Queues the copies of the photographs of the steps from start to stop.

        Args:
          dataset: that of `begin`, on the devices.
        """
        views = self.views_of(start, stop)
        zeros = lambda x: None if x is None else np.zeros(x.shape, x.dtype)
        sent = dataclasses.replace(
            dataset, **{name: zeros(getattr(dataset, name)) for name in ("images", "valid", "slots")}
        )
        for slot, view in enumerate(views):
            put_photograph(sent, slot, *self._pictures[scale][view])
            sent.slots[view] = slot
        photographs = parallel.replicate((sent.images, sent.valid, sent.slots), num_devices)
        return dataclasses.replace(dataset, images=photographs[0], valid=photographs[1], slots=photographs[2])


def make_feed(job: Job) -> Feed | None:
    """The feed of a training whose photographs stay on the host; None: all of them go to the devices.

    Several processes decide alike, because the decision shapes their program: where one has too little memory, all have a feed.

    Raises:
      UserError: an unknown data.resident.
    """
    settings, per_scale = job.settings, measure_photographs(job)
    place, free = settings.data.resident, find_free_memory()
    if place not in PLACES:
        raise UserError(f"config.data.resident is {place!r}, expected one of {', '.join(PLACES)}")
    if place == "auto":
        is_too_large = free is not None and sum(per_scale) > SHARE_OF_DEVICE * free
        place = "host" if parallel.largest(int(is_too_large)) else "device"
    if place == "device":
        return None
    num_views, period = len(job.scene.train_ids), min(settings.log_every, settings.density.every)
    fitting = MOST_BYTES * num_views // (max(per_scale) * settings.views_per_step)
    most_steps = max(n for n in range(1, period + 1) if period % n == 0 and n <= max(1, fitting))
    return Feed(seed=settings.seed, num_views=num_views, views_per_step=settings.views_per_step, most_steps=most_steps)


def measure_photographs(job: Job) -> list[int]:
    """Bytes of the padded photographs and masks of all training views, for each image scale."""
    scales = sorted({stage.scale for stage in job.stages})
    bytes_per_pixel = (3 if job.scene.valid is None else 4) * len(job.scene.train_ids)
    return [bytes_per_pixel * int(np.prod(training_sizes(job.scene, scale).max(axis=0))) for scale in scales]


def _host() -> Any:
    """The CPU, so that drawing views does not wait behind the queue of a GPU; None: JAX may not use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@functools.partial(jax.jit, static_argnames="num_views")
def _draw(seed, places, *, num_views: int):
    return jax.vmap(lambda place: view_at(seed, place, num_views))(places)
