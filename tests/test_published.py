"""What `published` trains, scene by scene: the steps and rates that the authors' code was seen to take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import published
from bags_jax.config import default_config, read_config
from bags_jax.job import make_blur_model
from bags_jax.scene.density import is_density_step, is_reset_step, thresholds_at
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.schedule import count_steps, late_from, make_stages
from bags_jax.settings import Settings, in_steps
from bags_jax.structs import Gaussians
from configs import deblur_nerf, mip360_mixed

SCENES = {**published.scenes("deblur"), **published.scenes("mip360")}


@functools.cache
def settings_of(name: str) -> Settings:
    module = mip360_mixed if name in published.scenes("mip360") else deblur_nerf
    config = module.get_config(f"{name},published")
    return in_steps(read_config(config), config.num_steps)


def steps_where(settings: Settings, is_due) -> list[int]:
    return [s for s in range(100, settings.num_steps + 1, 100) if is_due(settings.density, count_steps(settings, s))]


def thresholds(settings: Settings, step: int):
    is_early = step < late_from(settings, make_stages(settings))
    return thresholds_at(settings.density, count_steps(settings, step), is_early=is_early)


def hundreds(first: int, last: int) -> list[int]:
    return list(range(first, last + 1, 100))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("blurball", hundreds(600, 9000) + hundreds(9600, 43_900)),
        (
            "blurbasket",
            hundreds(600, 6000) + hundreds(6600, 39_900),
        ),  # step 40 000 is the last: nothing is changed there
        ("defocusseal", hundreds(600, 7000) + hundreds(7600, 9900)),
        ("garden", hundreds(600, 6000) + hundreds(6600, 40_900)),
        ("defocuscoral", hundreds(600, 18_000) + hundreds(18_600, 21_900)),
    ],
)
def test_density_control_steps_count_from_the_restart(name, expected):
    assert steps_where(settings_of(name), is_density_step) == expected


@pytest.mark.parametrize(
    "name, expected",
    [
        ("blurball", list(range(3000, 42_001, 3000))),
        # The authors also reset after step 10 000, the last one, when the scene is already saved.
        ("defocusseal", [3000, 6000]),
        ("defocuscupcake", [3000, 6000, 9000, 13_000, 16_000, 19_000, 22_000, 25_000, 28_000]),
    ],
)
def test_opacity_resets_count_from_the_restart(name, expected):
    assert steps_where(settings_of(name), is_reset_step) == expected


@pytest.mark.parametrize("name", SCENES)
def test_thresholds_change_after_the_step_of_the_restart(name):
    settings, row = settings_of(name), SCENES[name]
    early = int(row["multiscale_steps"])
    assert thresholds(settings, early).grad == float(row["densify_grad_multiscale"])
    assert thresholds(settings, early + 100).grad == 2e-4
    assert thresholds(settings, early).min_opacity == 0.1
    assert thresholds(settings, early + 100).min_opacity == float(row["min_opacity"])


@pytest.mark.parametrize("name", SCENES)
def test_wide_gaussians_are_pruned_at_mixed_resolution_alone(name):
    settings = settings_of(name)
    wide = [s for s in steps_where(settings, is_density_step) if thresholds(settings, s).max_scale]
    is_mixed = SCENES[name]["dataset"] == "mip360_mixed"
    assert bool(wide) == is_mixed
    assert {thresholds(settings, s).max_scale for s in wide} <= {0.1}
    if is_mixed:
        assert wide[0] == int(SCENES[name]["multiscale_steps"]) + 3100
    if name == "garden":
        assert len(wide) == 319
    assert not any(thresholds(settings, s).max_radius for s in steps_where(settings, is_density_step))


def rate_of_means(name: str, step: int) -> float:
    """Rate of the means in the step that leads from `step` to `step + 1`, as a share of the extent."""
    settings = settings_of(name)
    restart = int(settings.stages.restart)
    optimizer = make_optimizers(settings.optim, None, restart=restart, num_steps=settings.num_steps).gaussians
    shapes = (1, 3), (1, 4), (1, 3), (1,), (1, 1, 3), (1, 0, 3)
    ones = Gaussians(*(jnp.ones(shape) for shape in shapes))
    # All counters of the optimizer stand at `step`; Adam's moments are 0, so that its step is scaled by a known factor.
    state = jax.tree.map(lambda x: jnp.full_like(x, step) if x.dtype == jnp.int32 else x, optimizer.init(ones))
    means, quats = (getattr(optimizer.update(ones, state)[0], field) for field in ("means", "quats"))
    return float(means[0, 0] / quats[0, 0]) * settings.optim.quats


@pytest.mark.parametrize(
    "name, step, expected",
    [
        ("blurball", 0, 1.6e-4),
        ("blurball", 8900, 8.08e-5),  # 1.6e-4 * 0.01 ** (8900 / 60 000)
        ("blurball", 9000, 1.6e-4),
        ("blurball", 48_999, 7.43e-6),
        ("garden", 5999, 1.01e-4),
        ("garden", 59_999, 2.536e-6),
        ("defocusseal", 9999, 1.271e-4),
    ],
)
def test_rate_of_means_falls_over_60_000_steps_and_starts_again(name, step, expected):
    assert rate_of_means(name, step) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", SCENES)
def test_heads_go_on_after_the_multi_scale_phase_or_a_second_network_begins(name):
    settings, row = settings_of(name), SCENES[name]
    stages, early = make_stages(settings), int(row["multiscale_steps"])
    last, model = stages[-1], make_blur_model(settings, 3)
    assert last.kernel_size == int(row["final_kernel"])
    assert all(stage.zero_border and not stage.margin and not stage.linear_light for stage in stages)
    assert settings.blur.published_network and settings.blur.ray_depth and not settings.blur.hand_over
    if int(row["second_network"]):
        heads = 3 if early > 6000 else 2
        assert (last.head, last.network) == (heads, 1)
        assert model.layers == (1, 2, 3)[:heads] + (2,)
        assert {stage.network for stage in stages if stage.start < early} == {0}
    else:
        assert (last.head, last.network) == (2, 0) and model.layers == (1, 2, 3) and model.kernel_sizes == (5, 9, 17)
        assert {stage.head for stage in stages if stage.start >= 6000} == {2}


def test_squared_variations_have_the_weights_of_the_authors():
    for name, row in SCENES.items():
        loss = settings_of(name).loss
        assert (loss.depth_tv_squared, loss.rgb_tv_squared) == (float(row["depth_tv"]), float(row["rgb_tv"]))
        assert loss.depth_tv == loss.rgb_tv == 0.0 and loss.mask == 1e-3


def test_the_last_step_changes_no_gaussian():
    """A Gaussian that is split or made transparent after the last step would stay untrained."""
    settings = settings_of("defocusseal")
    assert settings.num_steps % 3000 == 1000 and count_steps(settings, 9999) == 2999
    assert count_steps(settings, settings.num_steps) == 0


def test_a_restart_between_density_control_steps_keeps_them_at_multiples():
    config = deblur_nerf.get_config("blurball,published")
    config.num_steps = 4900 + 37
    settings = in_steps(read_config(config), config.num_steps)
    assert int(settings.stages.restart) == 907
    steps = steps_where(settings, is_density_step)
    assert steps[:9] == [100, 200, 300, 400, 500, 600, 700, 800, 900] and len(steps) > 30


def test_at_equal_steps_is_the_network_of_the_authors():
    config = published.at_equal_steps(default_config())
    settings = read_config(config)
    model = make_blur_model(settings, 3)
    assert model.layers == (1, 2, 3) and (model.width, model.conv_width, model.feature_width) == (64, 64, 32)
    assert settings.blur.zero_border and settings.blur.ray_depth and not settings.blur.margin
    assert not settings.stages.restart_density and settings.density == Settings().density
    np.testing.assert_allclose(settings.optim.means, Settings().optim.means)
