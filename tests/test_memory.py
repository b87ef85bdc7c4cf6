"""The forecast of memory: what it counts, and that a scene that does not fit is refused."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from bags_jax import memory, parallel
from bags_jax.config import read_config
from bags_jax.data.pyramid import make_dataset
from bags_jax.dispatch import make_recipe
from bags_jax.errors import UserError
from bags_jax.job import first_state, make_job, state_template
from bags_jax.memory import COPIES, GPU_BYTES, check_memory, forecast_memory
from bags_jax.programs import Programs
from bags_jax.scene.initialize import with_optimizers
from bags_jax.training import make_job_optimizers, train
from configs import procedural

BUFFER = 16_384
TRAFFIC = json.loads((pathlib.Path(__file__).parent / "golden" / "traffic.json").read_text())


@pytest.fixture(scope="module")
def job():
    config = procedural.get_config("motion,smoke,large")
    config.num_devices, config.views_per_step, config.max_gaussians = 1, 1, 6000
    return make_job(read_config(config))


def test_counts_state_and_photographs(job):
    template = state_template(job)
    forecast = forecast_memory(job, template)
    state = first_state(job)
    per_row = sum(x.nbytes // x.shape[0] for x in jax.tree.leaves((state.gaussians, state.filter_3d, state.density)))
    assert forecast.state > COPIES * 6000 * per_row
    num, (height, width, _) = len(job.scene.train_ids), job.scene.images[0].shape
    assert forecast.photographs == 3 * num * (height * width + height // 2 * (width // 2))
    valid = tuple(np.ones(image.shape[:2], bool) for image in job.scene.images)
    masked = dataclasses.replace(job, scene=dataclasses.replace(job.scene, valid=valid))
    assert forecast_memory(masked, template).photographs == 4 * forecast.photographs // 3


@pytest.mark.slow
def test_temporaries_are_those_of_the_compiled_step(job):
    optimizers = make_job_optimizers(job)
    template = jax.eval_shape(lambda state: with_optimizers(state, optimizers), state_template(job))
    dataset = jax.tree.map(jax.numpy.asarray, make_dataset(job.scene, 1.0))
    recipe = make_recipe(job, optimizers, job.stages[-1], dataset, buffer=BUFFER, num_devices=1)
    state = parallel.replicate(with_optimizers(first_state(job), optimizers), 1)
    with Programs(1) as programs:
        compiled = programs._compile(recipe, *jax.tree.map(_shape, (state, dataset)))
    rows = state.alive.shape[0]
    same = dataclasses.replace(job, settings=dataclasses.replace(job.settings, max_gaussians=rows))
    forecast = forecast_memory(same, template)
    assert 0.5 < compiled.memory_analysis().temp_size_in_bytes / forecast.temporaries <= 1.2


@pytest.mark.parametrize("name", TRAFFIC)
def test_a_gpu_has_room_for_the_compiled_step(name):
    """The steps that tests/test_compile_ahead.py compiles for an H200; libraries add their workspaces."""
    width, height, _, _, _, *gaussians = TRAFFIC[name]["arguments"]
    forecast = GPU_BYTES.temporaries(width * height, gaussians[0] if gaussians else 1_000_000)
    assert 1.2 < forecast / TRAFFIC[name]["temporary_bytes"] < 5.0


def _shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def test_a_scene_that_does_not_fit_is_refused(job, monkeypatch, tmp_path):
    assert check_memory(job, state_template(job)).startswith("memory with 6000 Gaussians: 0.0 GB (state 0.0,")
    monkeypatch.setattr(memory, "find_free_memory", lambda: 1_000_000)
    message = r"with up to 4096 Gaussians needs 0.0 GB \(state 0.0, .*has 0.0 GB: lower config.max_gaussians, or raise"
    with pytest.raises(UserError, match=message):
        train(procedural.get_config("motion,smoke"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_this_machine_has_memory():
    assert memory.find_free_memory() is None or memory.find_free_memory() > 1e8
