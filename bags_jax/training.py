"""The training loop: build, resume, then for each finished dispatch: check, log, save."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from bags_jax import parallel
from bags_jax.budget import fill_in
from bags_jax.checkpoint import Checkpoints
from bags_jax.config import read_config
from bags_jax.dispatch import Dispatch, Dispatcher, check_shards, is_due, make_job_optimizers, make_shards
from bags_jax.enlargement import Enlarger, fit_network, recall_enlargement
from bags_jax.errors import UserError
from bags_jax.extension import extend_run
from bags_jax.interruption import AgreedInterruption, Interruption
from bags_jax.job import (
    Job,
    MakeModel,
    check_views,
    first_state,
    hash_photographs,
    make_job,
    state_template,
    training_cameras,
)
from bags_jax.memory import check_memory
from bags_jax.processes import check_equal
from bags_jax.programs import Programs
from bags_jax.progress import Progress
from bags_jax.scene.initialize import with_optimizers
from bags_jax.settings import Settings
from bags_jax.shared_job import share_job
from bags_jax.snapshot import advise_kernels, take_snapshot
from bags_jax.step import is_finite
from bags_jax.structs import TrainState
from bags_jax.workdir import claim_capture, claim_workdir, holds_run, note_photographs, saved_views_per_step
from bags_jax.workdir_lock import lock_workdir
from bags_jax.writers import Writers

OWN_PATHS = ("compilation_cache", "data.root", "init.scene")  # may differ among processes, as folders of their hosts


def train(config: Any, workdir: str | pathlib.Path, *, make_model: MakeModel | None = None) -> TrainState:
    """Trains a scene, or goes on where the working directory left off.

    Args:
      config: a ConfigDict with the settings of bags_jax/settings.py; it is not changed.
      workdir: folder of the run: settings, checkpoints, logs.
      make_model: makes the blur model from the settings and the number of training views; None: the Blur Proposal Network.
    Raises:
      UserError: bad input, another training on this directory, or a loss that is not finite (the last checkpoint stays).
    """
    with lock_workdir(workdir) if parallel.is_first() else contextlib.nullcontext():
        return _train(config, workdir, make_model)


def _train(config: Any, workdir: str | pathlib.Path, make_model: MakeModel | None) -> TrainState:
    settings, chosen = choose_settings(config, workdir)
    num_devices = parallel.count_devices(settings.num_devices, settings.views_per_step)
    job = share_job(make_job(settings, make_model=make_model))
    optimizers = make_job_optimizers(job)
    template = jax.eval_shape(lambda state: with_optimizers(state, optimizers), state_template(job))
    shards = make_shards(settings, num_devices)
    needed = check_memory(job, template, num_shards=shards.num)
    writes = parallel.is_first()
    extension = extend_run(workdir, job, settings) if writes else ()
    lines = notes(job, num_devices, (*chosen, needed, *extension))
    fresh = None if not writes or holds_run(workdir, settings) else first_state(job)
    if fresh is not None:
        check_shards(shards, int(jnp.sum(fresh.alive)))
    # After all checks: a run that cannot start leaves no trace.
    workdir = claim_workdir(workdir, settings) if writes else pathlib.Path(workdir)
    with (
        Checkpoints(workdir, keep=settings.keep_checkpoints, writes=writes) as checkpoints,
        Writers(workdir, start := checkpoints.resume()) as writers,
        Programs(num_devices) as programs,
        Progress(settings.num_steps, lines, step=start, quiet=not writes) as progress,
        Interruption() as interruption,
    ):
        state = checkpoints.restore(template) if start else with_optimizers(fresh or first_state(job), optimizers)
        state = parallel.share_tree(state, like=template)
        check_views(state, job.scene)
        enlarger = Enlarger(workdir, settings, make_model, progress.note)
        dispatcher = Dispatcher(job, optimizers, fit_network(job, state), programs, enlarger.enlarge)
        if writes:
            claim_capture(workdir, training_cameras(job.scene))  # after the check that there is something to train
            note_photographs(workdir, hash_photographs(job.scene, job.scene.train_ids))
        for done in dispatcher.run(lambda: interruption.is_requested):
            check_finite(done, checkpoints)
            check_alive(done, settings)
            progress.update(done.stop, done.stage, done.metrics)
            if writes and is_due(settings.log_every, done.stop, settings):
                writers.write(done.stop, progress.scalars())
            if writes and done.saved is not None:
                checkpoints.save(done.saved)
                draw_pictures(dispatcher.job, done, writers, progress)
        if dispatcher.step < settings.num_steps:
            save_and_leave(checkpoints, dispatcher.whole_state())
    return dispatcher.whole_state()


def draw_pictures(job: Job, done: Dispatch, writers: Writers, progress: Progress) -> None:
    """Draws the saved state of a dispatch into TensorBoard, and advises larger kernels where they are too small."""
    if done.saved is not None and shows_pictures(job.settings, done.stop):
        snapshot = take_snapshot(job, done.saved)
        writers.draw(done.stop, snapshot.pictures)
        if done.stage.head == job.stages[-1].head:
            progress.advise(advise_kernels(snapshot, job))


def choose_settings(config: Any, workdir: str | pathlib.Path) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a run, with those that are chosen for the user, and one line for each choice.

    Several processes: all must be given the same, but for the paths of their hosts. Process 0 chooses for all.
    """
    settings = read_config(config)
    facts = flatten_dict(dataclasses.asdict(settings), sep=".")
    check_equal("config.", {name: value for name, value in facts.items() if name not in OWN_PATHS})
    filled, chosen = settings, ()
    if parallel.is_first():
        filled, chosen = fill_in(settings, workdir)
        filled = choose_views_per_step(recall_enlargement(filled, workdir), workdir)
    if parallel.is_alone():
        return filled, chosen
    shared = read_config(json.loads(parallel.share_text(json.dumps(dataclasses.asdict(filled)))))
    data = dataclasses.replace(shared.data, root=settings.data.root)
    return dataclasses.replace(shared, compilation_cache=settings.compilation_cache, data=data), chosen


def shows_pictures(settings: Settings, step: int) -> bool:
    """True if pictures are drawn at a checkpoint."""
    every, period = settings.checkpoint_every, settings.pictures_every or settings.checkpoint_every
    return settings.pictures and (step == settings.num_steps or step // period > (step - every) // period)


def choose_views_per_step(settings: Settings, workdir: str | pathlib.Path) -> Settings:
    """Fills in views_per_step where it is 0: that of the run in the directory, else one view for each device."""
    if settings.views_per_step:
        return settings
    num = saved_views_per_step(workdir) or parallel.count_devices(settings.num_devices, 0)
    return dataclasses.replace(settings, views_per_step=num)


def notes(job: Job, num_devices: int, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """What the user should know before training starts, one line each: what was chosen for him comes first."""
    settings, available = job.settings, jax.device_count()
    known = (*chosen, *job.scene.notes)
    if settings.num_devices or num_devices == available:
        return known
    shared = f"{num_devices} of {available} devices are used: more cannot share {settings.views_per_step} views a step"
    return (*known, shared)


def save_and_leave(checkpoints: Checkpoints, state: TrainState) -> NoReturn:
    """Saves the state of an interrupted run, from which the same command goes on, and raises AgreedInterruption."""
    if int(state.step) and is_finite(state):
        checkpoints.save(state)
    raise AgreedInterruption


def check_alive(done: Dispatch, settings: Settings) -> None:
    """Raises UserError if density control has removed every Gaussian."""
    if not done.metrics["num_gaussians"]:
        raise UserError(
            f"no Gaussian is left after step {done.step}: lower config.density.min_opacity "
            f"({settings.density.min_opacity}), or look for broken photographs or poses"
        )


def check_finite(done: Dispatch, checkpoints: Checkpoints) -> None:
    """Raises UserError, with the loss terms that are not finite, if a step was rejected or the state to be saved is not finite.

    A state that is not finite and not to be saved passes: the next dispatch rejects it, and names the term if the loss shows it.
    """
    metrics = done.metrics
    if metrics["ok"] and (metrics["is_finite"] or done.saved is None):
        return
    terms = [name for name in metrics["mean"] if name not in ("total", "psnr")]
    bad = [f"{name} = {metrics[name]}" for name in terms if not np.isfinite(metrics[name])]
    steps = checkpoints.steps()
    kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there was no checkpoint yet"
    raise UserError(
        f"the loss is not finite at step {done.step} ({done.stage.name}): {', '.join(bad) or 'no term, but a gradient or a parameter'}; "
        f"{kept}: lower the learning rates (config.optim), or look for broken photographs or poses"
    )
