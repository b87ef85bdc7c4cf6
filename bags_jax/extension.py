"""Longer training: a finished run goes on to more steps."""

import dataclasses
import pathlib

from bags_jax.checkpoint import Checkpoints
from bags_jax.errors import UserError
from bags_jax.job import Job
from bags_jax.schedule import stage_at
from bags_jax.settings import Settings
from bags_jax.workdir import CONFIG_FILE, holds_run, read_settings, save_settings


def extend_run(workdir: str | pathlib.Path, job: Job, settings: Settings) -> tuple[str, ...]:
    """Raises num_steps of a finished run in the working directory, where `settings` asks for more steps.

    All schedules are shares of num_steps: the rest follows those of the longer run.

    Args:
      workdir: folder of the run.
      job: with the stages of the longer run.
      settings: of the longer run, as they are saved.
    Returns:
      one line that says how training goes on; nothing where there is no such run.
    Raises:
      UserError: the run is not finished, differs in other settings, or would go back to an earlier stage.
    """
    path = pathlib.Path(workdir).expanduser()
    if not (path / CONFIG_FILE).is_file():
        return ()
    before = read_settings(path).num_steps
    if before >= settings.num_steps or not holds_run(path, dataclasses.replace(settings, num_steps=before)):
        return ()
    with Checkpoints(path, create=False) as checkpoints:
        step = checkpoints.last()
    if step < before:
        raise UserError(
            f"--workdir={path} has trained {step} of {before} steps, and --config.num_steps={settings.num_steps} came: finish it "
            f"with --config.num_steps={before} first"
        )
    stage, last = stage_at(job.stages, step), job.stages[-1]
    if (stage.head, stage.network) != (last.head, last.network):
        longest = before * settings.num_steps // last.start
        raise UserError(
            f"--config.num_steps={settings.num_steps} came for a finished run of {before} steps, whose image scale would fall to "
            f"{stage.scale:g}: expected at most {longest}; or train from the scene in another --workdir: --config.init.scene={path}"
        )
    save_settings(path, settings)
    stop = round(job.settings.density.stop)
    density = f"until step {stop}" if stop > step else "is over"
    rest = f"the last {1 - step / settings.num_steps:.0%} of a run of {settings.num_steps} steps"
    return (
        f"goes on from step {step} to {settings.num_steps}: learning rates as in {rest}, density control {density}",
    )
