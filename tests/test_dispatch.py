"""Dispatches: how far ahead of the host they go, their buffer sizes, and the operations queued after them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.config import read_config
from bags_jax.data.pyramid import make_dataset
from bags_jax.dispatch import (
    after_steps,
    enter_stage,
    is_due,
    loop_length,
    make_recipe,
    next_event,
)
from bags_jax.job import first_state, make_job
from bags_jax.programs import copy_state
from bags_jax.scene.initialize import with_optimizers
from bags_jax.settings import Density, Settings
from bags_jax.training import make_job_optimizers
from configs import procedural


def make_small_job(**changes):
    config = procedural.get_config("motion,smoke")
    config.num_devices = config.views_per_step = 1
    config.blur.warmup, config.density.every = 0.0, 3
    config.update_from_flattened_dict(changes)
    return make_job(read_config(config))


def make_data(job, scale):
    dataset = make_dataset(job.scene, scale, extent=job.extent, near_plane=job.near_plane)
    return jax.tree.map(jnp.asarray, dataset)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "density", [{"start": 0, "stop": 12, "reset_every": 6}, {"start": 12}], ids=["density control", "filter only"]
)
def test_operations_after_a_dispatch_leave_a_state_at_another_step_alone(density):
    """Density control, opacity reset and 3D filter are queued before it is known whether the steps before them were ok."""
    job = make_small_job()
    settings = dataclasses.replace(job.settings, density=dataclasses.replace(job.settings.density, **density))
    job = dataclasses.replace(job, settings=settings)
    state, dataset = with_optimizers(first_state(job), make_job_optimizers(job)), make_data(job, 0.5)
    at = lambda step: dataclasses.replace(copy_state(state), step=jnp.int32(step))
    assert_same(after_steps(job, at(5), 6, dataset), at(5))
    reached = after_steps(job, at(6), 6, dataset)
    assert not np.array_equal(reached.filter_3d, state.filter_3d)
    lowered = jnp.max(jax.nn.sigmoid(reached.gaussians.logit_opacities)) < 0.05
    assert bool(lowered) == ("reset_every" in density)


def test_a_stage_takes_over_the_kernels_of_the_stage_before():
    """The hand-over enlarges the kernels by the ratio of the image scales, and may be repeated."""
    job = make_small_job()
    assert job.model is not None
    first, second = job.stages
    data = [make_data(job, stage.scale) for stage in job.stages]
    state = first_state(job)
    bias = jnp.asarray([0, 1, 0, 2, 5, 2, 0, 1, 0], jnp.float32)
    state.network["first"]["kernel_heads_0"]["bias"] = bias
    entered = enter_stage(job, first, copy_state(state), data[0])
    assert_same(entered.network, state.network)  # no stage before it
    handed = dataclasses.replace(copy_state(state), step=jnp.int32(second.start))
    expected = job.model.hand_over(state.network["first"], source=0, target=1, zoom=2.0)
    assert not np.array_equal(expected["kernel_heads_1"]["bias"], state.network["first"]["kernel_heads_1"]["bias"])
    for _ in range(2):
        handed = enter_stage(job, second, handed, data[1])
        assert_same(handed.network["first"], expected)
    off = dataclasses.replace(job, settings=make_small_job(**{"blur.hand_over": False}).settings)
    assert_same(enter_stage(off, second, copy_state(state), data[1]).network, state.network)


def test_recipe_of_a_stage():
    job = make_small_job(views_per_step=4, backend="xla")
    stage, dataset = job.stages[1], make_data(job, 1.0)
    recipe = make_recipe(job, make_job_optimizers(job), stage, dataset, buffer=1024, num_devices=2)
    assert (recipe.stage, recipe.model, recipe.loss) == (stage, job.model, job.settings.loss)
    assert (recipe.views_per_step, recipe.num_devices, recipe.loop_length) == (4, 2, 0)  # 0: this is no GPU
    view = recipe.view
    assert (view.width, view.height, view.margin, view.max_intersections) == (32, 24, stage.kernel_size // 2, 1024)
    assert (view.near_plane, view.backend, view.background) == (job.near_plane, "xla", job.scene.background)
    again = make_recipe(job, make_job_optimizers(job), stage, dataset, buffer=1024, num_devices=2)
    assert recipe == again and hash(recipe) == hash(again)  # else its steps would be compiled again


def with_periods(density, log, checkpoint) -> Settings:
    return Settings(density=Density(every=density), log_every=log, checkpoint_every=checkpoint, num_steps=2000)


@pytest.mark.parametrize("periods, length", [((100, 50, 1000), 50), ((100, 100, 10), 10), ((100, 30, 1000), 0)])
def test_loops_of_known_length_waste_no_iterations(periods, length):
    assert loop_length(with_periods(*periods)) == length


def test_a_dispatch_ends_at_the_next_event():
    job = make_small_job()
    stage = dataclasses.replace(job.stages[0], start=0, stop=130)
    settings = with_periods(100, 50, 1000)
    assert [next_event(settings, stage, step) for step in (0, 49, 50, 99, 100, 129)] == [50, 50, 100, 100, 130, 130]
    assert [is_due(50, step, settings) for step in (49, 50, 1999, 2000)] == [False, True, False, True]
    assert is_due(3000, 2000, settings)  # the last step
