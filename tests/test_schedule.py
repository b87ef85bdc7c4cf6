"""Stages that follow from the settings, and schedules at their ends and corners."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.errors import UserError
from bags_jax.schedule import (
    Stage,
    check_image_size,
    exponential,
    hold_then_decay,
    late_from,
    make_stages,
    phase_progress,
    stage_at,
)
from bags_jax.settings import Blur, Settings, Stages, in_steps

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


def test_progress_restarts():
    def progress(step, restart):
        return float(phase_progress(jnp.int32(step), restart=restart, num_steps=100))

    assert [progress(s, 0) for s in (0, 50, 100, 200)] == [0.0, 0.5, 1.0, 1.0]
    np.testing.assert_allclose([progress(s, 60) for s in (0, 30, 59, 60, 80, 100)], [0, 0.5, 59 / 60, 0, 0.5, 1])


def make(**groups) -> tuple[Stage, ...]:
    """The stages of the default settings, with some groups replaced."""
    settings = dataclasses.replace(Settings(), **groups)
    return make_stages(in_steps(settings, settings.num_steps))


def test_stops_may_be_steps():
    stages = make(num_steps=900, stages=Stages(stops=(100, 300, 900)), blur=Blur(warmup=0.0))
    assert [stage.stop for stage in stages] == [100, 300, 900]


@pytest.mark.parametrize(
    "group, message",
    [
        (Blur(kernel_sizes=(5, 8, 17)), "has 8, expected odd sizes"),
        (Blur(kernel_sizes=(5, -1, 17)), "has -1, expected odd sizes"),
        (Blur(kernel_sizes=(5, 9)), "has 2 values, expected 3"),
        (Blur(strides=(1, 0, 2)), "expected strides >= 1"),
        (Stages(stops=(0.5, 0.4, 1.0)), "expected rising steps that end at num_steps"),
        (Stages(stops=(0.1, 0.4, 0.9)), "expected rising steps that end at num_steps"),
        (Stages(stops=(0.1, 1.0)), "has 2 values, expected 3"),
        (Stages(scales=(0.5, 0.25, 1.0)), "expected rising scales"),
        (Stages(scales=(0.25, 0.5, 2.0)), "expected rising scales"),
        (Stages(scales=()), "stages.s"),
    ],
)
def test_schedule_that_does_not_fit(group, message):
    with pytest.raises(UserError, match=message) as caught:
        make(**{type(group).__name__.lower(): group})
    assert "\n" not in str(caught.value)


def test_no_stage_at_all_is_refused():
    with pytest.raises(UserError, match="at least one of stages.scales"):
        make(stages=Stages(scales=(), stops=()), blur=Blur(kernel_sizes=(), strides=()))


def test_margin_is_as_wide_as_kernels_reach():
    assert [(s.kernel_size, s.margin) for s in make()] == [(0, 0), (5, 2), (9, 4), (17, 8)]
    assert [s.margin for s in make(blur=Blur(margin=False))] == [0, 0, 0, 0]


def test_stages_carry_stride_and_colour_space():
    assert [(s.head, s.stride) for s in make()] == [(0, 1), (0, 1), (1, 1), (2, 2)]
    assert all(s.linear_light for s in make()) and not any(s.linear_light for s in make(blur=Blur(linear_light=False)))
    assert not any(s.clips_white for s in make()) and all(s.clips_white for s in make(blur=Blur(clips_white=True)))


def test_late_thresholds_begin_at_the_restart_or_the_last_stage():
    for restart, expected in ((0.0, 2800), (0.5, 10_000)):
        settings = in_steps(dataclasses.replace(Settings(), stages=Stages(restart=restart)), 20_000)
        assert late_from(settings, make_stages(settings)) == expected


def test_images_too_small_for_a_stage():
    check_image_size(make(), 600, 400)
    with pytest.raises(UserError, match="images of 60 x 24 px have a side of 6 px at scale 0.25, expected at least 8"):
        check_image_size(make(), 60, 24)
