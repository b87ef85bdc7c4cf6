"""Schedules at their ends and corners."""

import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.schedule import Stage, exponential, hold_then_decay, phase_progress, stage_at

STAGES = (Stage(0, 10, 0.25, 0, 0), Stage(10, 30, 0.5, 9, 0), Stage(30, 60, 1.0, 17, 1))


@pytest.mark.parametrize("step, index", [(0, 0), (9, 0), (10, 1), (29, 1), (30, 2), (59, 2), (60, 2), (99, 2)])
def test_stage_of_a_step(step, index):
    assert stage_at(STAGES, step) is STAGES[index]


def test_stages_have_names():
    assert STAGES[0].name == "scale 0.25, no blur model" and STAGES[2].name == "scale 1, kernel 17"


@pytest.mark.parametrize("progress, value", [(-1.0, 1e-2), (0.0, 1e-2), (0.5, 1e-3), (1.0, 1e-4), (2.0, 1e-4)])
def test_exponential(progress, value):
    np.testing.assert_allclose(exponential(1e-2, 1e-4, jnp.float32(progress)), value, rtol=1e-5)


@pytest.mark.parametrize("progress, value", [(0.0, 1.0), (0.5, 1.0), (0.75, 0.1), (1.0, 0.01)])
def test_hold_then_decay(progress, value):
    np.testing.assert_allclose(hold_then_decay(1.0, 0.01, 0.5, jnp.float32(progress)), value, rtol=1e-5)
    np.testing.assert_allclose(hold_then_decay(1.0, 0.01, 1.0, jnp.float32(0.99)), 1.0)


def test_progress_starts_anew():
    def progress(step, restart):
        return float(phase_progress(jnp.int32(step), restart=restart, num_steps=100))

    assert [progress(s, 0) for s in (0, 50, 100, 200)] == [0.0, 0.5, 1.0, 1.0]
    np.testing.assert_allclose([progress(s, 60) for s in (0, 30, 59, 60, 80, 100)], [0, 0.5, 59 / 60, 0, 0.5, 1])
