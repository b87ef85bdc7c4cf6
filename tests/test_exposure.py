"""Exposures of the training views: what a gain does, the gauge, and that training finds the gains of the photographs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.config import load_config, read_config
from bags_jax.errors import UserError
from bags_jax.job import load_photographs
from bags_jax.run import open_run
from bags_jax.scene.exposure import expose, hold_brightness
from bags_jax.synthetic import make_scene
from bags_jax.synthetic.auto_exposure import change_exposure, vary_exposures
from bags_jax.tone import linear_to_srgb, srgb_to_linear
from bags_jax.training import train
from bags_jax.training_views import render_training_views

SPREAD = 0.3


def test_multiplies_light():
    image = jnp.asarray(np.random.default_rng(0).uniform(0.08, 1.0, (5, 6, 3)), jnp.float32)
    gains = jnp.array([1.3, 1.0, 0.8])
    expected = linear_to_srgb(srgb_to_linear(image) * gains[None, None])
    np.testing.assert_allclose(expose(image, jnp.log(gains)), expected, atol=2e-6)
    np.testing.assert_allclose(expose(image, jnp.zeros(3)), image, atol=1e-7)
    eight = np.asarray(np.round(255 * image), np.uint8)
    np.testing.assert_allclose(
        change_exposure(eight, np.array([1.3, 1.0, 0.8])) / 255.0, np.clip(expected, 0, 1), atol=0.006
    )


def test_mean_brightness_is_held():
    gains = jnp.array([[0.3, 0.0, 0.1], [0.1, 0.2, 0.1]])
    alike = hold_brightness(gains, jnp.ones(2))
    np.testing.assert_allclose(alike, [[0.1, -0.1, 0.0], [-0.1, 0.1, 0.0]], atol=1e-7)
    one_is_sharp = hold_brightness(gains, jnp.array([0.1, 30.0]))
    np.testing.assert_allclose(one_is_sharp, [[0.0, 0.0, 0.0], [-0.2, 0.2, 0.0]], atol=1e-3)


def test_only_training_photographs_vary():
    scene = make_scene("none", width=32, height=24)
    varied = vary_exposures(scene, SPREAD, seed=0)
    changed = [not np.array_equal(a, b) for a, b in zip(scene.images, varied.images, strict=True)]
    assert [i for i, x in enumerate(changed) if x] == scene.train_ids.tolist()
    assert vary_exposures(scene, 0.0, seed=0) is scene
    with pytest.raises(UserError, match="synthetic.exposure_spread is -1"):
        vary_exposures(scene, -1, seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short plain run on photographs of varying exposure."""
    config = load_config("procedural:none")
    config.synthetic.width, config.synthetic.height = 64, 42
    config.synthetic.exposure_spread = SPREAD
    config.num_steps, config.max_gaussians = 600, 1500
    config.blur.enabled = False
    config.stages.scales, config.stages.stops = (0.5, 1.0), (0.2, 1.0)
    config.blur.kernel_sizes, config.blur.strides = (3, 3), (1, 1)
    workdir = tmp_path_factory.mktemp("exposure")
    train(config, workdir)
    return open_run(workdir)


def true_log_gains(run):
    """The log gains of light between the photographs and the unvaried ones, over pixels that neither clips; mean 0."""
    config = run.job.settings
    plain = load_photographs(
        dataclasses.replace(config, synthetic=dataclasses.replace(config.synthetic, exposure_spread=0.0))
    )
    gains = []
    for i in run.scene.train_ids:
        before, after = (np.asarray(srgb_to_linear(jnp.asarray(s.images[i]) / 255.0)) for s in (plain, run.scene))
        inside = (before > 0.02) & (after > 0.02) & (after < 0.95)
        gains.append([np.log(after[..., c][inside[..., c]] / before[..., c][inside[..., c]]).mean() for c in range(3)])
    return np.array(gains) - np.mean(gains, axis=0)


@pytest.mark.slow
def test_training_finds_the_gains(run):
    true, found = true_log_gains(run), np.asarray(run.state.exposures)
    assert true.std() > 0.2
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    assert np.abs(found - true).mean() < 0.15 * np.abs(true).mean()


def test_training_views_have_the_exposure_of_their_photographs(run):
    brightness = [(float(np.mean(view.sharp)), view.photo.mean() / 255.0) for view in render_training_views(run)]
    np.testing.assert_allclose(*zip(*brightness), rtol=0.03)


def test_published_settings_learn_no_exposure():
    settings = read_config(load_config("procedural:motion,published"))
    assert settings.optim.exposures == settings.loss.exposures == 0
