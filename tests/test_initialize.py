"""The state that training starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.data.scene import Scene
from bags_jax.scene.initialize import (
    init_gaussians,
    init_state,
    near_plane,
    neighbour_distance,
    random_points,
    scene_extent,
    with_optimizers,
)
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.settings import Optim


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


def test_cameras_in_one_place_have_an_extent_too():
    """A tripod: the extent of 3e-7 units would be rounding noise, and far too small."""
    viewmats = np.tile(np.eye(4), (3, 1, 1))
    viewmats[:, 0, 3] = [100.0, 100.0 + 1e-5, 100.0]
    assert scene_extent(viewmats) == 1.0


@pytest.mark.parametrize("extent, depth", [(7.0, 0.2), (0.97, 0.2), (0.1, 0.025)])
def test_near_plane_is_smaller_in_a_small_scene(extent, depth):
    assert near_plane(extent) == pytest.approx(depth)


def test_random_points_are_where_the_views_see_something():
    """Between the depth bounds of the capture, inside the image of a training view: here the first and the last of three."""
    viewmats = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    viewmats[:, 0, 3] = [0.0, 500.0, -1000.0]
    K = np.array([[30.0, 0, 20], [0, 30, 12], [0, 0, 1]], np.float32)
    depths = np.array([[2.0, 5.0], [1.0, 9.0], [20.0, 50.0]], np.float32)
    images = tuple(np.zeros((24, 40, 3), np.uint8) for _ in range(3))
    some = {"points": np.zeros((0, 3), np.float32), "point_colors": np.zeros((0, 3), np.float32)}
    ids = {"train_ids": np.array([0, 2]), "test_ids": np.array([1])}
    scene = Scene(("a", "b", "c"), images, viewmats, np.stack([K] * 3), **ids, **some, depths=depths)
    points, colors = random_points(scene, 400, seed=0)
    assert points.shape == colors.shape == (400, 3) and points.dtype == np.float32
    seen = np.zeros(400, int)
    for view in (0, 2):
        in_camera = points + viewmats[view, :3, 3]
        x, y = (in_camera @ K.T)[:, :2].T / in_camera[:, 2]
        inside = (x > -0.01) & (x < 40.01) & (y > -0.01) & (y < 24.01)
        near, far = depths[view]
        seen += inside & (in_camera[:, 2] > 0.999 * near) & (in_camera[:, 2] < 1.001 * far)
        assert (inside & (in_camera[:, 2] > 0)).sum() > 100
    assert (seen == 1).all()


def test_gaussians_stand_on_the_points_with_their_colours():
    points = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    colors = np.random.default_rng(1).uniform(size=(7, 3)).astype(np.float32)
    gaussians = init_gaussians(points, colors, capacity=10, sh_degree=2, opacity=0.1)
    np.testing.assert_allclose(gaussians.means[:7], points)
    np.testing.assert_allclose(gaussians.sh_dc[:7, 0] * 0.28209479 + 0.5, colors, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-gaussians.logit_opacities[:7])), 0.1, rtol=1e-5)
    np.testing.assert_allclose(np.exp(gaussians.log_scales[:7, 0]), neighbour_distance(points), rtol=1e-5)
    assert gaussians.sh_rest.shape == (10, 8, 3) and not gaussians.sh_rest.any()


def test_state_at_step_0():
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    gaussians = init_gaussians(points, np.abs(points) % 1, capacity=8, sh_degree=3, opacity=0.1)
    model = BlurProposalNetwork(num_views=2, kernel_sizes=(3,), width=4, embedding_width=2, use_rgbd=False)
    state = init_state(gaussians, jnp.arange(8) < 5, num_views=2, model=model, num_networks=2, seed=7)
    assert int(jnp.sum(state.alive)) == 5 and int(state.step) == 0 and int(state.seed) == 7
    assert state.network.keys() == {"first", "second"}
    first, second = (state.network[name]["trunk_0"]["kernel"] for name in ("first", "second"))
    assert (first != second).all(), "each network has random numbers of its own"
    assert state.poses.shape == (2, 6) and not state.blur_px.any() and not state.density.counts.any()
    assert state.gaussians_opt == state.network_opt == state.poses_opt == ()
    ready = with_optimizers(state, make_optimizers(Optim(), model, restart=0, num_steps=10))
    assert all(jax.tree.leaves(opt) for opt in (ready.gaussians_opt, ready.network_opt, ready.poses_opt))
    assert not init_state(gaussians, jnp.arange(8) < 5, num_views=2).network
