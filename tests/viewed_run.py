"""A run for the tests of the viewer: settings and checkpoints as training writes them, without training."""

import dataclasses
import pathlib

import jax.numpy as jnp

from bags_jax.checkpoint import Checkpoints
from bags_jax.config import load_config, read_config
from bags_jax.job import first_state, make_job
from bags_jax.workdir import claim_workdir

STEPS = (4, 8, 12)


def write_run(workdir: pathlib.Path, *, steps=STEPS, **changes) -> pathlib.Path:
    """Writes a run with checkpoints at these steps, each a little redder than the one before."""
    config = load_config("procedural:motion,smoke")
    config.views_per_step, config.keep_checkpoints = 1, 9
    for name, value in changes.items():
        config[name] = value
    settings = read_config(config)
    claim_workdir(workdir, settings)
    state = first_state(make_job(settings))
    gaussians = dataclasses.replace(state.gaussians, logit_opacities=state.gaussians.logit_opacities + 4.0)
    with Checkpoints(workdir, keep=9) as checkpoints:
        for step in steps:
            red = gaussians.sh_dc.at[..., 0].add(0.1 * step)
            redder = dataclasses.replace(gaussians, sh_dc=red)
            checkpoints.save(dataclasses.replace(state, step=jnp.int32(step), gaussians=redder))
    return workdir
