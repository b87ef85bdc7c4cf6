"""What a training begins with: the scene, its near plane, its first Gaussians."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from bags_jax import plan
from bags_jax.errors import UserError
from bags_jax.plan import steps_of
from bags_jax.synthetic import make_scene
from configs import procedural

train = importlib.import_module("bags_jax.training")  # the module: bags_jax.training is the function


def make_config(**changes):
    config = procedural.get_config("motion,smoke")
    config.num_devices = config.views_per_step = 1
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("asked, extent, depth", [(0.0, 5.0, 0.2), (0.0, 0.1, 0.025), (0.05, 5.0, 0.05)])
def test_near_plane_is_that_of_the_configuration_or_of_the_scene(asked, extent, depth):
    job = dataclasses.replace(train.make_job(make_config(**{"data.near_plane": asked})), extent=extent)
    assert job.near_plane == pytest.approx(depth)


def test_older_runs_keep_their_near_plane():
    config = make_config()
    with config.unlocked():
        del config.data.near_plane
    assert plan.switch_off_later(config).data.near_plane == 0.2


def test_points_that_no_view_sees_are_refused(tmp_path, monkeypatch):
    """Training would end, without a word, in a black scene."""
    load = train.plan.load

    def load_and_hide(config):
        scene = load(config)
        away = 100.0 * scene.viewmats[:, 2, :3].mean(axis=0)
        return dataclasses.replace(scene, points=scene.points - away)

    monkeypatch.setattr(train.plan, "load", load_and_hide)
    with pytest.raises(UserError, match="no training view sees any of the 200 Gaussians"):
        train.train(make_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "capture.json").exists()  # a new reconstruction may go on here


def test_capture_without_points_starts_from_random_ones(monkeypatch, capsys):
    def without_points(*args, **kwargs):
        scene = make_scene(*args, **kwargs)
        return dataclasses.replace(scene, points=scene.points[:0], point_colors=scene.point_colors[:0])

    monkeypatch.setattr(plan, "make_scene", without_points)
    config = make_config(**{"init.num_random": 200})
    job = train.make_job(config)
    state = train.first_state(job)
    means = np.asarray(state.gaussians.means)[np.asarray(state.alive)]
    assert means.shape == (200, 3) and np.ptp(means, axis=0).min() > 2 * job.extent
    jax.tree.map(np.testing.assert_array_equal, state, train.first_state(job))  # the seed decides
    said = [note for note in job.scene.notes if "no points" in note]
    assert len(said) == 1 and "200 random" in said[0]
    with train.Progress(config.num_steps, job.scene.notes):
        pass
    assert capsys.readouterr().out.count("no points") == 1


def test_more_points_than_gaussians():
    with pytest.raises(UserError, match="200 points came for at most 100 Gaussians: raise config.max_gaussians"):
        train.first_state(train.make_job(make_config(max_gaussians=100)))


def test_steps_of_a_schedule():
    assert [steps_of(value, 1000) for value in (0.0, 0.25, 1.0, 2, 300)] == [0, 250, 1000, 2, 300]
