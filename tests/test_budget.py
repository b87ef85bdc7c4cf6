"""A budget of minutes: what is chosen, that it fits the time, and that given settings stay."""

import dataclasses

import pytest
from captures import NAMES, write_colmap, write_photos

from bags_jax.budget import FULL_STEPS, FULL_WIDTH, STEPS_BEFORE_SIZE, choose, fill_in, find_step_cost
from bags_jax.config import load_config, read_config
from bags_jax.data.load import CaptureSize, measure_capture
from bags_jax.errors import UserError
from bags_jax.settings import Settings
from bags_jax.workdir import claim_workdir

PHONE = CaptureSize(num_views=40, width=4000, height=3000, num_points=5000)
TWO_CORES, GPU = find_step_cost("cpu", 2), find_step_cost("gpu", 16)


def custom(**changes):
    """The settings of configs/custom.py."""
    return dataclasses.replace(read_config(load_config("custom")), **changes)


@pytest.mark.parametrize("cost", [TWO_CORES, find_step_cost("cpu", 16), GPU])
@pytest.mark.parametrize("minutes", [2, 8, 60, 600])
def test_choice_fits_the_time(minutes, cost):
    chosen = choose(custom(minutes=minutes), PHONE, cost)
    width, height = (round(side / chosen["data.factor"]) for side in (PHONE.width, PHONE.height))
    step = cost.seconds(width * height, chosen["max_gaussians"], chosen["blur.kernel_sizes"][-1], 2)
    assert cost.startup_s + chosen["num_steps"] * step <= 60 * minutes
    assert chosen["num_steps"] == FULL_STEPS or cost.startup_s + (chosen["num_steps"] + 100) * step >= 60 * minutes
    assert width <= FULL_WIDTH and all(side % 2 for side in chosen["blur.kernel_sizes"])


def test_more_time_means_larger_images_then_more_steps():
    chosen = [choose(custom(minutes=minutes), PHONE, TWO_CORES) for minutes in (2, 8, 30, 120, 2000)]
    factors = [c["data.factor"] for c in chosen]
    assert factors == sorted(factors, reverse=True) and len(set(factors)) >= 4
    assert all(c["num_steps"] >= STEPS_BEFORE_SIZE for c in chosen[1:])
    assert chosen[-1]["num_steps"] == FULL_STEPS


def test_a_gpu_gets_the_full_scene():
    chosen = choose(custom(), PHONE, GPU)
    assert chosen["data.factor"] == 3 and chosen["num_steps"] >= 10_000 and chosen["max_gaussians"] == 1_000_000


def test_every_point_finds_a_row():
    assert choose(custom(), dataclasses.replace(PHONE, num_points=70_500), TWO_CORES)["max_gaussians"] == 71_000


@pytest.fixture
def capture(tmp_path):
    """A COLMAP scene."""
    write_photos(tmp_path / "capture" / "images")
    write_colmap(tmp_path / "capture")
    return tmp_path / "capture"


def test_measures_a_capture_without_decoding(capture):
    assert measure_capture(capture) == CaptureSize(num_views=len(NAMES), width=96, height=64, num_points=4)


def test_given_settings_stay_and_one_line_says_the_rest(capture, tmp_path):
    settings = custom(num_steps=500, data=dataclasses.replace(Settings().data, root=str(capture), factor=0))
    filled, (line,) = fill_in(settings, tmp_path / "run")
    assert filled.num_steps == 500 and filled.data.factor == 1 and filled.blur.kernel_sizes == (3, 5, 9)
    assert "6 photographs at 96 x 64 px: --config.data.factor=1 --config.max_gaussians=8000" in line
    assert "num_steps" not in line and "--config.blur.kernel_sizes=3,5,9" in line
    assert fill_in(filled, tmp_path / "run") == (filled, ())


def test_a_run_that_has_begun_keeps_its_choice(capture, tmp_path):
    settings = custom(data=dataclasses.replace(Settings().data, root=str(capture), factor=0))
    first, _ = fill_in(settings, tmp_path / "run")
    claim_workdir(tmp_path / "run", dataclasses.replace(first, num_steps=777))
    again, lines = fill_in(dataclasses.replace(settings, minutes=100.0), tmp_path / "run")
    assert again.num_steps == 777 and not lines


def test_nothing_to_choose_from(tmp_path):
    with pytest.raises(UserError, match="config.num_steps is 0, expected a value, or config.minutes"):
        fill_in(dataclasses.replace(Settings(), num_steps=0), tmp_path)
    with pytest.raises(UserError, match="config.data.root is empty"):
        fill_in(custom(), tmp_path)
