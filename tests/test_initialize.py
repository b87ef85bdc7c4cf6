"""The state that training starts from."""

import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import plan
from bags_jax.errors import UserError
from bags_jax.initialize import init_gaussians, init_state, neighbour_distance, scene_extent
from bags_jax.optimizer import make_optimizers
from configs import base


def test_neighbour_distance_is_that_of_the_three_nearest():
    points = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    squared = np.sort(((points[:, None] - points[None]) ** 2).sum(-1), axis=1)[:, 1:4]
    np.testing.assert_allclose(neighbour_distance(points), np.sqrt(squared.mean(1)), rtol=1e-5)


def test_few_or_equal_points_have_a_size_too():
    assert neighbour_distance(np.zeros((0, 3), np.float32)).shape == (0,)
    for points in (np.zeros((1, 3)), np.zeros((5, 3))):
        assert (neighbour_distance(points.astype(np.float32)) > 0).all()


def test_extent_is_the_reach_of_the_cameras():
    viewmats = np.tile(np.eye(4), (3, 1, 1))
    viewmats[:, 0, 3] = [-1.0, 0.0, 1.0]
    assert scene_extent(viewmats) == pytest.approx(1.1)


def test_gaussians_stand_on_the_points_with_their_colours():
    points = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    colors = np.random.default_rng(1).uniform(size=(7, 3)).astype(np.float32)
    gaussians = init_gaussians(points, colors, capacity=10, sh_degree=2, opacity=0.1)
    np.testing.assert_allclose(gaussians.means[:7], points)
    np.testing.assert_allclose(gaussians.sh_dc[:7, 0] * 0.28209479 + 0.5, colors, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-gaussians.logit_opacities[:7])), 0.1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(gaussians.log_scales[:7, 0]), neighbour_distance(points), rtol=1e-5)
    assert gaussians.sh_rest.shape == (10, 8, 3) and not gaussians.sh_rest.any()


def test_more_points_than_rows_are_refused():
    optimizers = make_optimizers(plan.make_rates(base.get_config()), restart=0, num_steps=10)
    points = np.zeros((5, 3), np.float32)
    with pytest.raises(UserError, match="max_gaussians"):
        init_state(points, points, None, optimizers, capacity=4, num_views=2)
    state = init_state(points, points, None, optimizers, capacity=8, num_views=2)
    assert int(jnp.sum(state.alive)) == 5 and int(state.step) == 0
