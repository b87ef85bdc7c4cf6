"""The training loop: build, resume, then step, control density, write, save.

The devices are a dispatch ahead of the host: while it looks at what one has done, they are at the next, and wait for it only where
a stage ends or where it takes longer than they do. All that is asked of them ahead says of which step it is, and leaves a state
that has not come so far as it is.
"""

import dataclasses
import pathlib
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bags_jax import parallel, plan
from bags_jax.blur_model.proposal_network import BlurProposalNetwork, hand_over
from bags_jax.checkpoint import Checkpoints
from bags_jax.data.pyramid import make_dataset
from bags_jax.data.scene import Scene
from bags_jax.dispatch import (
    HEADROOM_AHEAD,
    Programs,
    control_density,
    copied,
    lower_opacity,
    more_room,
    most_pairs,
    refresh_filter,
    room_for,
)
from bags_jax.errors import UserError
from bags_jax.interruption import Interruption
from bags_jax.platforms import current_platform
from bags_jax.progress import Progress
from bags_jax.rendering import View
from bags_jax.scene.density import grow, ungrow
from bags_jax.scene.initialize import init_state, near_plane, random_points, scene_extent
from bags_jax.scene.optimizer import Optimizers, make_optimizers
from bags_jax.scene.pose_refinement import make_pose_frame
from bags_jax.schedule import Stage, stage_at
from bags_jax.step import Recipe, is_finite, network_name
from bags_jax.structs import Dataset, PoseFrame, TrainState
from bags_jax.workdir import claim_capture, claim_workdir, noted_views_per_step
from bags_jax.writers import Writers

GROWS_SOON = 0.6  # part of the rows in use from which the program of the next capacity is made
ROOM_ENDS_SOON = 0.9  # the same for the room for pairs of tile and Gaussian


@dataclasses.dataclass(frozen=True)
class Job:
    """A configuration worked out for one scene."""

    config: plan.Config
    scene: Scene
    stages: tuple[Stage, ...]
    network: BlurProposalNetwork | None
    optimizers: Optimizers
    density: plan.DensityPlan
    extent: float
    num_devices: int
    pose_frame: PoseFrame | None  # None: poses are not refined
    _datasets: dict[float, Dataset] = dataclasses.field(default_factory=dict)

    def dataset(self, scale: float) -> Dataset:
        """The training views at one image scale, on the devices; made when first asked for."""
        if scale not in self._datasets:
            dataset = make_dataset(self.scene, scale, extent=self.extent, near_plane=self.near_plane)
            dataset = dataclasses.replace(dataset, pose_frame=self.pose_frame)
            self._datasets[scale] = parallel.replicate(dataset, self.num_devices)
        return self._datasets[scale]

    @property
    def near_plane(self) -> float:
        """Depth at which pictures begin, scene units."""
        return self.config.data.near_plane or near_plane(self.extent)

    def recipe(self, stage: Stage, dataset: Dataset, room: int) -> Recipe:
        """The static part of a stage's step."""
        _, height, width, _ = dataset.images.shape
        config = self.config
        return Recipe(
            stage=stage,
            view=View(
                width=width,
                height=height,
                max_intersections=room,
                background=self.scene.background,
                margin=plan.margin_of(config, stage),
                near_plane=self.near_plane,
                deterministic=config.get("deterministic", False),  # get: runs from before it was there
            ),
            objective=plan.make_objective(config),
            optimizers=self.optimizers,
            network=self.network,
            views_per_step=config.views_per_step,
            num_devices=self.num_devices,
            sh_every=plan.steps_of(config.sh_every, config.num_steps),
            loop_length=plan.loop_length(config) if current_platform() == "gpu" else 0,
        )


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Steps that the devices were asked for; the arrays are promises until they are looked at."""

    stage: Stage
    stop: int  # the step that they lead to, if all of them are ok
    capacity: int  # rows of the state that they are done with
    metrics: dict  # of train_steps, and num_gaussians and is_finite of the state that is left
    kept: TrainState | None = None  # a copy of the state, where a checkpoint is due

    def look(self) -> dict:
        """The metrics as numbers, as soon as the devices are done."""
        return jax.tree.map(lambda x: x.item(), jax.device_get(self.metrics))


def make_job(config: plan.Config) -> Job:
    """Loads the scene of a configuration and works out everything that does not change in training.

    Raises:
      UserError: what the configuration asks for cannot be had.
    """
    plan.check_lists(config)
    plan.check_known(config)
    plan.check_weights(config)
    plan.check_counts(config)
    stages = plan.make_stages(config)
    num_devices = plan.count_devices(config)
    scene = plan.load(config)
    if len(scene.points) == 0:
        num = num_random_points(config)
        scene = dataclasses.replace(
            scene, notes=(*scene.notes, f"the capture has no points: {num} random ones are used")
        )
    if not config.num_devices and num_devices < (there := jax.local_device_count()):
        shared = f"{num_devices} of {there} devices are used: more cannot share {config.views_per_step} views a step"
        scene = dataclasses.replace(scene, notes=(*scene.notes, shared))
    height, width = np.min([image.shape[:2] for image in scene.images], axis=0)
    plan.check_sizes(stages, int(width), int(height))
    extent = scene_extent(scene.viewmats[scene.train_ids])
    restart = plan.steps_of(config.stages.restart, config.num_steps)
    return Job(
        config=config,
        scene=scene,
        stages=stages,
        network=plan.make_network(config, len(scene.train_ids)),
        optimizers=make_optimizers(plan.make_rates(config), restart=restart, num_steps=config.num_steps),
        density=plan.make_density_plan(config, stages),
        extent=extent,
        num_devices=num_devices,
        pose_frame=_pose_frame(scene, extent) if config.optim.poses else None,
    )


def _pose_frame(scene: Scene, extent: float) -> PoseFrame:
    ids = scene.train_ids
    return make_pose_frame(scene.viewmats[ids], scene.Ks[ids], scene.points, depth=extent)


def check_views(state: TrainState, scene: Scene) -> None:
    """Raises UserError where a checkpoint is of another number of training views."""
    if state.poses.shape[0] != len(scene.train_ids):
        raise UserError(
            f"the checkpoint knows {state.poses.shape[0]} training views, the capture has {len(scene.train_ids)} now: bring the "
            "photographs back as they were, or train again in another --workdir"
        )


def training_cameras(scene: Scene) -> dict[str, Float[np.ndarray, "4 4"]]:
    """cam_from_world of the training views by their names: what a run notes of its capture."""
    return {scene.names[i]: scene.viewmats[i] for i in scene.train_ids}


def num_random_points(config: plan.Config) -> int:
    """How many points a capture without any starts from."""
    return min(config.init.num_random, config.max_gaussians)


def first_state(job: Job) -> TrainState:
    """The state at step 0: Gaussians on the points of the capture, or on random ones."""
    config, scene = job.config, job.scene
    points, colors = scene.points, scene.point_colors
    if len(points) == 0:
        points, colors = random_points(scene, num_random_points(config), config.seed)
    return init_state(
        points,
        colors,
        job.network,
        job.optimizers,
        capacity=plan.capacity_plan(len(points), config.max_gaussians),
        sh_degree=config.sh_degree,
        opacity=config.init.opacity,
        num_views=len(scene.train_ids),
        num_networks=1 + config.blur.second_network,
        seed=config.seed,
    )


def enter_stage(job: Job, stage: Stage, state: TrainState, dataset: Dataset) -> TrainState:
    """What happens where a stage begins: kernels are handed over, the 3D filter is that of the new scale.

    Idempotent: a dispatch that fell short at a stage's first step enters it again.
    """
    before = [s for s in job.stages if s.stop <= stage.start and s.kernel_size]
    if job.network is not None and stage.kernel_size and before and job.config.blur.hand_over:
        source, name = before[-1], network_name(stage.network)
        if source.head != stage.head and source.network == stage.network:
            heads = {"source": source.head, "target": stage.head, "kernel_sizes": job.network.kernel_sizes}
            params = hand_over(state.network[name], **heads, zoom=stage.scale / source.scale)
            state = dataclasses.replace(state, network={**state.network, name: params})
    return refresh_filter(state, stage.start, dataset)


def after_step(job: Job, state: TrainState, step: int, dataset: Dataset) -> TrainState:
    """Density control, opacity reset and 3D filter: whatever is due after `step` steps, if the state has come so far."""
    density = job.density
    if step % density.every:
        return state
    if density.is_due(step):
        key = jax.random.fold_in(jax.random.key(job.config.seed + 1), step)
        rules, threshold = density.rules_at(step), jnp.float32(density.threshold(step))
        state = control_density(state, step, key, threshold, dataset, rules=rules)
    else:
        state = refresh_filter(state, step, dataset)
    return lower_opacity(state, step) if density.resets_opacity(step) else state


def dispatch(
    job: Job, programs: Programs, rooms: dict[Stage, int], state: TrainState, step: int
) -> tuple[TrainState, Dispatch]:
    """Asks for the steps up to the next event, and before them, where a stage begins, for what it begins with.

    Args:
      rooms: for pairs of tile and Gaussian in each stage; that of a stage that begins is made larger here, if it has to be.
    """
    stage = stage_at(job.stages, step)
    dataset = job.dataset(stage.scale)
    if step == stage.start:
        state = enter_stage(job, stage, state, dataset)
        needed = most_pairs(state, dataset, job.recipe(stage, dataset, 0).view)
        rooms[stage] = rooms[stage] if needed < rooms[stage] else room_for(needed)
    stop, capacity = next_event(job.config, stage, step), state.alive.shape[0]
    state, metrics = programs.steps(job.recipe(stage, dataset, rooms[stage]), state, dataset, step, stop)
    return state, Dispatch(stage, stop, capacity, metrics)


def follow(job: Job, state: TrainState, steps: Dispatch, num_gaussians: int) -> tuple[TrainState, Dispatch]:
    """Asks for what comes after the steps of a dispatch, and for what is to be known and kept of the state then.

    Args:
      num_gaussians: that the last turn of density control has left. By it room is made for the next turn, and at no other time: a
        step is the same to the last bit only among states of as many rows.
    """
    state = grown(job, state, num_gaussians) if job.density.is_due(steps.stop) else state
    state = after_step(job, state, steps.stop, job.dataset(steps.stage.scale))
    metrics = {**steps.metrics, "num_gaussians": jnp.sum(state.alive), "is_finite": is_finite(state)}
    kept = copied(state) if is_due(job.config.checkpoint_every, steps.stop, job.config) else None
    return state, dataclasses.replace(steps, metrics=metrics, kept=kept)


def grown(job: Job, state: TrainState, num_gaussians: int) -> TrainState:
    """The state with more rows, where so many Gaussians nearly fill those that it has."""
    capacity = state.alive.shape[0]
    wanted = plan.next_capacity(capacity, num_gaussians, job.config.max_gaussians)
    return parallel.replicate(grow(state, wanted), job.num_devices) if wanted > capacity else state


def taken_back(job: Job, state: TrainState, steps: Dispatch) -> TrainState:
    """The state without the rows that it was given for a turn of density control that it has not come to."""
    return parallel.replicate(ungrow(state, steps.capacity), job.num_devices)


def train(config: plan.Config, workdir: str | pathlib.Path) -> TrainState:
    """Trains a scene from a configuration, or goes on where the working directory left off.

    Raises:
      UserError: bad input, or a loss that is not finite (the last checkpoint stays).
    """
    config = config.copy_and_resolve_references()  # the caller's stays as it is
    config.views_per_step = config.views_per_step or noted_views_per_step(workdir) or plan.count_devices(config)
    job = make_job(config)
    template = jax.eval_shape(lambda: first_state(job))
    workdir = claim_workdir(workdir, config)  # last of all checks: a run that cannot start leaves no trace
    with (
        Checkpoints(workdir, keep=config.keep_checkpoints) as checkpoints,
        Writers(workdir, checkpoints.last()) as writers,
        Programs(job.num_devices) as programs,
        Progress(config.num_steps, job.scene.notes, step=checkpoints.last()) as progress,
        Interruption() as interruption,
    ):
        state = checkpoints.restore(template) if checkpoints.steps() else first_state(job)
        check_views(state, job.scene)
        state = parallel.replicate(jax.tree.map(jnp.asarray, state), job.num_devices)
        step, num_gaussians, unseen = int(state.step), int(jnp.sum(state.alive)), None
        rooms = prepare_stages(job, programs, state)
        claim_capture(workdir, training_cameras(job.scene))  # once there is something to train
        while step < config.num_steps or unseen:
            if interruption.is_wanted and not unseen:
                save_and_leave(checkpoints, state)
            ahead, ends = None, unseen and unseen.stop == unseen.stage.stop
            if not ends and not interruption.is_wanted:  # else the host waits for what is under way
                state, ahead = dispatch(job, programs, rooms, state, step)
            if unseen:  # the devices are at what comes next
                metrics = unseen.look()
                check_finite(metrics, unseen, checkpoints)
                if metrics["step"] < unseen.stop:  # then what comes next has no effect
                    if metrics["num_dropped"] > 0:
                        rooms[unseen.stage] = more_room(rooms[unseen.stage], metrics["num_intersections"])
                    state, step, unseen = taken_back(job, state, unseen), metrics["step"], None
                    continue
                check_alive(metrics, config)
                num_gaussians = metrics["num_gaussians"]
                prepare_growth(job, programs, state, unseen.stage, rooms, metrics)
                progress.update(unseen.stop, unseen.stage, metrics)
                if is_due(config.log_every, unseen.stop, config):
                    writers.write(unseen.stop, progress.scalars())
                if unseen.kept is not None:
                    checkpoints.save(unseen.kept)
            unseen = None
            if ahead:
                state, unseen = follow(job, state, ahead, num_gaussians)
                step = unseen.stop
    return state


def save_and_leave(checkpoints: Checkpoints, state: TrainState) -> NoReturn:
    """Ends a training that was interrupted, at a step from which it goes on as if it had not been."""
    if int(state.step) and is_finite(state):
        checkpoints.save(state)
    raise KeyboardInterrupt


def prepare_stages(job: Job, programs: Programs, state: TrainState) -> dict[Stage, int]:
    """Starts to compile the steps of all stages to come; returns the room for pairs of tile and Gaussian of each.

    Raises:
      UserError: there is nothing to train: no Gaussian is in view.
    """
    rooms = {}
    for stage in job.stages:
        if stage.stop > int(state.step):
            dataset = job.dataset(stage.scale)
            pairs = most_pairs(state, dataset, job.recipe(stage, dataset, 0).view)
            if not pairs:
                raise UserError(
                    f"no training view sees any of the {int(jnp.sum(state.alive))} Gaussians: poses and points do not belong together, "
                    "or there are no points and the poses say too little of where the scene is; run COLMAP for points"
                )
            rooms[stage] = room_for(pairs, headroom=HEADROOM_AHEAD)
            programs.prepare(job.recipe(stage, dataset, rooms[stage]), state, dataset)
    return rooms


def prepare_growth(
    job: Job, programs: Programs, state: TrainState, stage: Stage, rooms: dict[Stage, int], metrics: dict
) -> None:
    """Starts to compile what a growing scene needs next: steps with more rows, in this stage and the next, or with more room.

    Args:
      state: of its arrays only shapes and places are looked at; it is ahead of the metrics.
      metrics: the last that were looked at: step, num_intersections of its largest view, and num_gaussians.
    """
    capacity, step = state.alive.shape[0], metrics["step"]
    wanted = plan.next_capacity(capacity, metrics["num_gaussians"], job.config.max_gaussians, full=GROWS_SOON)
    states = [state]
    if wanted > capacity and job.density.start <= step < job.density.stop:
        shapes = jax.eval_shape(lambda: grow(state, wanted))
        states.append(jax.tree.map(lambda x, now: x.update(sharding=now.sharding), shapes, state))
        for soon in [s for s in job.stages if s.stop > step][:2]:
            dataset = job.dataset(soon.scale)
            programs.prepare(job.recipe(soon, dataset, rooms[soon]), states[-1], dataset)
    if metrics["num_intersections"] > ROOM_ENDS_SOON * rooms[stage]:
        dataset = job.dataset(stage.scale)
        for each in states:
            programs.prepare(job.recipe(stage, dataset, more_room(rooms[stage])), each, dataset)


def next_event(config: plan.Config, stage: Stage, step: int) -> int:
    """The next step at which the loop has to look: end of the stage, density control, log, checkpoint."""
    return min([stage.stop] + [(step // period + 1) * period for period in plan.looks_every(config)])


def is_due(period: int, step: int, config: plan.Config) -> bool:
    """Whether what is done every so many steps, and at the end, is done after this one."""
    return step % period == 0 or step == config.num_steps


def check_alive(metrics: dict, config: plan.Config) -> None:
    """Raises UserError where density control has left nothing."""
    if not metrics["num_gaussians"]:
        raise UserError(
            f"no Gaussian is left after step {metrics['step']}: lower config.density.min_opacity "
            f"({config.density.min_opacity}), or look for broken photographs or poses"
        )


def check_finite(metrics: dict, steps: Dispatch, checkpoints: Checkpoints) -> None:
    """Raises UserError with the terms of the loss that are not finite, where a step was not ok for another reason than its room,
    or where the last one left what must not be kept."""
    can_be_kept = metrics["is_finite"] or steps.kept is None  # else the next step is not ok, and knows the term
    if metrics["num_dropped"] > 0 or (metrics["ok"] and can_be_kept):
        return
    terms = [name for name, value in metrics["mean"].items() if name not in ("total", "psnr")]
    bad = [f"{name} = {metrics[name]}" for name in terms if not np.isfinite(metrics[name])] or [
        "no term, but what the step makes of the parameters"
    ]
    kept = checkpoints.steps()
    way_out = f"the checkpoint of step {kept[-1]} is kept" if kept else "there was no checkpoint yet"
    raise UserError(
        f"the loss is not finite at step {metrics['step']} ({steps.stage.name}): {', '.join(bad)}; {way_out}: "
        "lower the learning rates (config.optim), or look for broken photographs or poses"
    )
