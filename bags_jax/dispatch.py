"""Running ahead of the host: the devices work on one dispatch while the host reads the results of the one before.

A dispatch is a run of steps up to the next event: the end of a stage, a density control step, a log or a checkpoint. The host
waits for the devices only where a stage ends. Every operation that is queued ahead names the step it is meant for, and leaves a
state at any other step unchanged; so a dispatch that fell short (its intersection buffer was too small) is repeated with a larger
buffer, and whatever was queued after it has no effect.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from bags_jax import parallel
from bags_jax.data.pyramid import make_dataset
from bags_jax.errors import UserError
from bags_jax.feed import Feed, make_feed
from bags_jax.growth import NEARLY_FULL, growth_on
from bags_jax.job import Job
from bags_jax.ops.rasterize import buffer_size
from bags_jax.platforms import current_platform
from bags_jax.programs import (
    Programs,
    apply,
    control_density,
    copy_state,
    largest_count,
    largest_counts,
    lower_opacity,
    refresh_filter,
    survey,
)
from bags_jax.scene.density import is_density_step, is_reset_step, thresholds_at
from bags_jax.scene.optimizer import Optimizers, make_optimizers, scale_rates
from bags_jax.scene.rows import grow, join_rows, row_axes, split_rows, ungrow
from bags_jax.schedule import Stage, count_steps, late_from, stage_at
from bags_jax.settings import Settings
from bags_jax.shards import WHOLE, Shards
from bags_jax.step import Recipe
from bags_jax.structs import Dataset, TrainState, network_name

# Larger kernels where a stage begins: the job and the state that go on; None: they are large enough.
Enlarge = Callable[[Job, Stage, TrainState], tuple[Job, TrainState] | None]


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Queued steps. The arrays are futures until `read` waits for them."""

    stage: Stage
    stop: int  # the step that they lead to, if all of them are ok
    capacity: int  # rows of the state on each device at their end
    metrics: dict  # of train_steps, with num_gaussians and is_finite of the state afterwards
    saved: TrainState | None = None  # a copy of the state, where a checkpoint is due

    def read(self) -> "Dispatch":
        """Waits for the devices; returns the dispatch with its metrics as numbers."""
        return dataclasses.replace(self, metrics=jax.tree.map(lambda x: x.item(), jax.device_get(self.metrics)))

    @property
    def step(self) -> int:
        """The step that the state has reached. Only after `read`."""
        return self.metrics["step"]


class Dispatcher:
    """Trains a state ahead of the host.

    Attributes:
      state: as of the last queued operation; its rows may be split over the devices.
      step: as of the last queued dispatch.
    """

    def __init__(
        self, job: Job, optimizers: Optimizers, state: TrainState, programs: Programs, enlarge: Enlarge | None = None
    ):
        self.job, self._optimizers, self._programs, self._enlarge = job, optimizers, programs, enlarge
        self._shards = make_shards(job.settings, programs.num_devices)
        self.state = self._split(state)
        self.step = int(state.step)
        self._num_gaussians = int(jnp.sum(state.alive))
        self._growth = growth_on(current_platform())
        self._feed = make_feed(job)
        self._datasets: dict[float, Dataset] = {}
        self._buffers: dict[tuple[Stage, int], int] = {}  # of intersections, for a stage and a number of rows
        self._max_sent: dict[int, int] = {}  # Gaussians that a device sends to another, for a number of rows
        self._prepare_stages(self._growth.stages_ahead)

    def whole_state(self) -> TrainState:
        """The state with all rows in one piece. Waits for the devices."""
        return self._join(self.state)

    def _split(self, state: TrainState) -> TrainState:
        """Spreads a whole state over the devices."""
        if not self._shards.are_split:
            return self._place(jax.tree.map(jnp.asarray, state))
        return self._place(split_rows(state, self._shards))

    def _join(self, state: TrainState) -> TrainState:
        """Undoes `_split`."""
        return join_rows(state, max_rows=self.job.settings.max_gaussians) if self._shards.are_split else state

    def _place(self, state: TrainState) -> TrainState:
        """Copies a state, whose rows are split or not as is due, to where the programs expect it."""
        if not self._shards.are_split:
            return parallel.replicate(state, self._programs.num_devices)
        return parallel.spread(state, row_axes(state), self._programs.num_devices)

    def run(self, is_interrupted: Callable[[], bool]) -> Iterator[Dispatch]:
        """Yields every dispatch that was trained, with its metrics as numbers, while the devices work on the next one.

        Ends after the last step, or early, with all queued work read, once `is_interrupted()` is true. A dispatch that did not
        reach its last step although the buffer was large enough is yielded too: its metrics say what was not finite.

        Several processes agree: each tells the others with every dispatch whether it is interrupted, and all end after the same.
        """
        queued, must_stop = None, False
        while self.step < self.job.settings.num_steps or queued:
            must_stop = must_stop or (parallel.is_alone() and is_interrupted())
            if must_stop and not queued:
                return
            ends_stage = queued and queued.stop == queued.stage.stop
            ahead = None if ends_stage or must_stop else self._queue_steps(is_interrupted())
            if queued:  # the devices work on `ahead` now
                done = queued.read()
                must_stop = must_stop or done.metrics["num_interrupted"] > 0
                if done.step < done.stop and done.metrics["num_dropped"] + done.metrics["num_unsent"] > 0:
                    self._roll_back(done)
                    queued = None
                    continue
                yield done if done.saved is None else dataclasses.replace(done, saved=self._join(done.saved))
                self._num_gaussians = done.metrics["num_gaussians"]
                self._prepare_growth(done)
            queued = self._queue_end(ahead) if ahead else None

    def _queue_steps(self, is_interrupted: bool) -> Dispatch:
        """Queues the steps up to the next event, and before them, where a stage begins, its first operations."""
        stage, capacity = stage_at(self.job.stages, self.step), self.state.alive.shape[-1]
        dataset = self._dataset(stage)
        if self.step == stage.start:
            stage = self._enlarge_kernels(stage)
            self.state = enter_stage(self.job, stage, self.state, dataset, shards=self._shards)
            needed, visible = self._count(stage)
            if needed >= self._buffer(stage, capacity):
                self._buffers[stage, capacity] = buffer_size(int(self._growth.headroom * needed))
            if visible > self._sent(capacity):
                self._max_sent[capacity] = buffer_size(int(self._growth.headroom * visible))
            self._prepare_stages(1)
        stop = next_event(self.job.settings, stage, self.step, feed=self._feed)
        if self._feed:
            steps = self.step, stop
            dataset = self._feed.send(dataset, stage.scale, *steps, num_devices=self._programs.num_devices)
        recipe = self._recipe(stage, dataset, self._buffer(stage, capacity), capacity)
        self.state, metrics = self._programs.steps(recipe, self.state, dataset, self.step, stop)
        num_interrupted = parallel.count_raised(is_interrupted, self._programs.num_devices)
        return Dispatch(stage, stop, capacity, {**metrics, "num_interrupted": num_interrupted})

    def _enlarge_kernels(self, stage: Stage) -> Stage:
        """Goes on with larger kernels where `enlarge` finds them needed. Returns the stage that begins, with its kernels."""
        asks = self._enlarge is not None and self.job.settings.blur.enlarge_kernels
        larger = self._enlarge(self.job, stage, self.whole_state()) if self._enlarge and asks else None
        if larger is None:
            return stage
        self.job, state = larger
        self._optimizers = make_job_optimizers(self.job)
        self.state = self._split(state)
        self._programs.cancel()
        self._prepare_stages(self._growth.stages_ahead)
        return stage_at(self.job.stages, self.step)

    def _queue_end(self, steps: Dispatch) -> Dispatch:
        """Queues density control after a dispatch, and the metrics and the checkpoint copy of the resulting state.

        The state grows only here, and only before density control: steps are equal bit for bit only among states with equal
        numbers of rows.
        """
        settings = self.job.settings
        if is_density_step(settings.density, count_steps(settings, steps.stop)):
            capacity = self.state.alive.shape[-1]
            wanted = self._next_rows(full=self._growth.grow_at)
            if wanted > capacity:
                self.state = self._place(grow(self.state, wanted))
        self.state = after_steps(self.job, self.state, steps.stop, self._dataset(steps.stage), shards=self._shards)
        state = survey(self.state, self._shards)
        saved = copy_state(self.state) if is_due(settings.checkpoint_every, steps.stop, settings) else None
        self.step = steps.stop
        return dataclasses.replace(steps, metrics={**steps.metrics, **state}, saved=saved)

    def _roll_back(self, done: Dispatch) -> None:
        """Enlarges the buffer that was too small, and returns to the step that the state has reached."""
        if done.metrics["num_unsent"] > 0:
            larger = self._growth.next_buffer(self._sent(done.capacity), done.metrics["num_visible"])
            self._max_sent[done.capacity] = larger
        else:
            buffer = self._buffer(done.stage, done.capacity)
            larger = self._growth.next_buffer(buffer, done.metrics["num_intersections"])
            self._buffers[done.stage, done.capacity] = larger
        self.state = self._place(ungrow(self.state, done.capacity))
        self.step = done.step

    def _prepare_stages(self, ahead: int) -> None:
        """Chooses the intersection buffers of this stage and of some after it, and starts to compile their steps.

        Raises:
          UserError: no Gaussian is in view.
        """
        rows = self.state.alive.shape[-1]
        for stage in self._stages_after(self.step)[: 1 + ahead]:
            if not self._buffer(stage, rows):
                needed, visible = self._count(stage)
                if not needed:
                    raise UserError(
                        f"no training view sees any of the {self._num_gaussians} Gaussians: poses and points do not belong "
                        "together, or there are no points and the poses do not say where the scene is; run COLMAP for points"
                    )
                self._buffers[stage, rows] = buffer_size(int(self._growth.headroom_ahead * needed))
                if visible > self._sent(rows):
                    self._max_sent[rows] = buffer_size(int(self._growth.headroom_ahead * visible))
            self._prepare(stage, self.state)

    def _prepare_growth(self, done: Dispatch) -> None:
        """Starts to compile what a growing scene needs next: steps with more rows, or with a larger buffer."""
        density, capacity, stage = self.job.settings.density, self.state.alive.shape[-1], done.stage
        wanted, needed = self._next_rows(full=self._growth.compile_at), done.metrics["num_intersections"]
        visible = done.metrics["num_visible"]
        if wanted > capacity and density.start <= count_steps(self.job.settings, done.step) < density.stop:
            shapes = jax.eval_shape(lambda: grow(self.state, wanted))
            grown = jax.tree.map(lambda x, now: x.update(sharding=now.sharding), shapes, self.state)
            self._max_sent.setdefault(wanted, buffer_size(int(self._growth.headroom_ahead * visible)))
            for soon in self._stages_after(done.step)[:2]:
                ahead = int(self._growth.headroom_ahead * needed * soon.scale / stage.scale)
                self._buffers.setdefault((soon, wanted), buffer_size(ahead))
                self._prepare(soon, grown)
        buffer = self._buffer(stage, capacity)
        if needed > NEARLY_FULL * buffer:
            recipe = self._recipe(stage, self._dataset(stage), self._growth.next_buffer(buffer), capacity)
            self._programs.prepare(recipe, self.state, self._dataset(stage))
        if visible > NEARLY_FULL * (sent := self._sent(capacity)) and sent < capacity:
            recipe = self._recipe(stage, self._dataset(stage), buffer, capacity)
            recipe = dataclasses.replace(recipe, max_sent=_sent_of(self._growth.next_buffer(sent), capacity))
            self._programs.prepare(recipe, self.state, self._dataset(stage))

    def _prepare(self, stage: Stage, state: TrainState) -> None:
        """Starts to compile the steps of a stage for the rows of a state."""
        dataset, rows = self._dataset(stage), state.alive.shape[-1]
        self._programs.prepare(self._recipe(stage, dataset, self._buffer(stage, rows), rows), state, dataset)

    def _stages_after(self, step: int) -> list[Stage]:
        """The stages that have steps from this one on."""
        return [stage for stage in self.job.stages if stage.stop > step]

    def _count(self, stage: Stage) -> tuple[int, int]:
        """Number of intersections of the present scene in the most demanding view of a stage, and of visible Gaussians of one
        device (0 where all have all). Waits for the devices."""
        dataset = self._dataset(stage)
        view = self._recipe(stage, dataset, 0, 0).view
        if self._shards.are_split:
            return largest_counts(self.state, dataset, view, self._shards)
        return parallel.largest(largest_count(self.state, dataset, view)), 0

    def _buffer(self, stage: Stage, rows: int) -> int:
        """Size of the intersection buffer of a stage: the largest that was chosen for up to so many rows."""
        return max((size for key, size in self._buffers.items() if key[0] == stage and key[1] <= rows), default=0)

    def _sent(self, rows: int) -> int:
        """Largest number of Gaussians to send that was chosen for up to so many rows on each device."""
        return max((size for key, size in self._max_sent.items() if key <= rows), default=0)

    def _next_rows(self, *, full: float) -> int:
        """Number of rows on each device for the steps to come, once a share `full` of those of today is in use."""
        rows, limit = self._shards.count_rows(self.state.alive), self.job.settings.max_gaussians
        return -(-self._growth.next_rows(rows, self._num_gaussians, limit, full=full) // self._shards.num)

    def _dataset(self, stage: Stage) -> Dataset:
        """The training views at the scale of a stage, on the devices; made at the first call."""
        if stage.scale not in self._datasets:
            job = self.job
            where = {"extent": job.extent, "near_plane": job.near_plane}
            if self._feed:
                dataset = self._feed.begin(job, stage.scale)
            else:
                dataset = make_dataset(job.scene, stage.scale, **where)
            dataset = dataclasses.replace(dataset, pose_frame=job.pose_frame)
            self._datasets[stage.scale] = parallel.replicate(dataset, self._programs.num_devices)
        return self._datasets[stage.scale]

    def _recipe(self, stage: Stage, dataset: Dataset, buffer: int, rows: int) -> Recipe:
        num_devices = self._programs.num_devices
        sizes = {"buffer": buffer, "num_devices": num_devices, "feed": self._feed}
        recipe = make_recipe(self.job, self._optimizers, stage, dataset, **sizes)
        max_sent = _sent_of(self._sent(rows), rows) if self._shards.are_split else 0
        return dataclasses.replace(recipe, shards=self._shards, max_sent=max_sent)


def _sent_of(size: int, rows: int) -> int:
    """Recipe.max_sent for a buffer of this size: 0, all, where it holds all rows of a device."""
    return size if size < rows else 0


def make_shards(settings: Settings, num_devices: int) -> Shards:
    """Where the rows of the Gaussians are in a training run."""
    return Shards(num_devices) if settings.shard_gaussians and num_devices > 1 else WHOLE


def check_shards(shards: Shards, num_gaussians: int) -> None:
    """Raises UserError if there are more shards than Gaussians."""
    if shards.num > num_gaussians:
        raise UserError(
            f"config.shard_gaussians=True came for {num_gaussians} Gaussians on {shards.num} devices, expected at least one for each: "
            "set config.num_devices lower, or config.shard_gaussians=False"
        )


def make_job_optimizers(job: Job) -> Optimizers:
    """The optimizers of a training run."""
    settings = job.settings
    optim = scale_rates(settings.optim, settings.num_steps)
    return make_optimizers(optim, job.model, restart=int(settings.stages.restart), num_steps=settings.num_steps)


def make_recipe(
    job: Job,
    optimizers: Optimizers,
    stage: Stage,
    dataset: Dataset,
    *,
    buffer: int,
    num_devices: int,
    feed: Feed | None = None,
) -> Recipe:
    """The static part of the steps of a stage.

    Args:
      dataset: training views at the scale of the stage; only its shapes matter.
      buffer: size of the intersection buffer.
      feed: where the photographs stay on the host.
    """
    settings, (_, height, width, _) = job.settings, dataset.images.shape
    return Recipe(
        stage=stage,
        view=job.view(width, height, margin=stage.margin, max_intersections=buffer),
        loss=settings.loss,
        optimizers=optimizers,
        model=job.model,
        views_per_step=settings.views_per_step,
        num_devices=num_devices,
        sh_every=int(settings.sh_every),
        learns_exposures=settings.optim.exposures > 0,
        loop_length=loop_length(settings, feed) if current_platform() == "gpu" else 0,
    )


def enter_stage(job: Job, stage: Stage, state: TrainState, dataset: Dataset, *, shards: Shards = WHOLE) -> TrainState:
    """The state at the beginning of a stage: kernels are handed over, and the 3D filter is that of the new scale.

    Idempotent: a dispatch that fell short at the first step of a stage enters it again.
    """
    before = [s for s in job.stages if s.stop <= stage.start and s.kernel_size]
    if job.model is not None and stage.kernel_size and before and job.settings.blur.hand_over:
        source, name = before[-1], network_name(stage.network)
        if source.head != stage.head and source.network == stage.network:
            heads = {"source": source.head, "target": stage.head}
            params = job.model.hand_over(state.network[name], **heads, zoom=stage.scale / source.scale)
            state = dataclasses.replace(state, network={**state.network, name: params})
    return apply(refresh_filter, state, jnp.int32(stage.start), dataset, shards=shards)


def after_steps(job: Job, state: TrainState, step: int, dataset: Dataset, *, shards: Shards = WHOLE) -> TrainState:
    """Density control, 3D filter and opacity reset: whatever is due after `step` steps, if the state has reached that step."""
    density, count, now = job.settings.density, count_steps(job.settings, step), jnp.int32(step)
    if step % density.every:
        return state
    if is_density_step(density, count):
        key = jax.random.fold_in(jax.random.key(job.settings.seed + 1), step)
        thresholds = thresholds_at(density, count, is_early=step < late_from(job.settings, job.stages))
        limit = {"shards": shards, "max_rows": job.settings.max_gaussians}
        state = apply(control_density, state, now, key, thresholds, dataset, **limit)
    else:
        state = apply(refresh_filter, state, now, dataset, shards=shards)
    return apply(lower_opacity, state, now, shards=shards) if is_reset_step(density, count) else state


def periods(settings: Settings) -> tuple[int, int, int]:
    """Periods, in steps, of the events that end a dispatch: density control, log, checkpoint."""
    return settings.density.every, settings.log_every, settings.checkpoint_every


def next_event(settings: Settings, stage: Stage, step: int, *, feed: Feed | None = None) -> int:
    """The step at which the next dispatch ends."""
    lengths = (*periods(settings), feed.most_steps) if feed else periods(settings)
    return min([stage.stop] + [(step // period + 1) * period for period in lengths])


def loop_length(settings: Settings, feed: Feed | None = None) -> int:
    """Recipe.loop_length on a GPU: the shortest period, if the others are its multiples; else 0, since iterations would be wasted."""
    shortest = feed.most_steps if feed else min(periods(settings))
    return 0 if any(period % shortest for period in periods(settings)) else shortest


def is_due(period: int, step: int, settings: Settings) -> bool:
    """True at every multiple of a period, and at the end of training."""
    return step % period == 0 or step == settings.num_steps
