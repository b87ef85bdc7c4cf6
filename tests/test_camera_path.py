"""Tests positions and directions of the cameras of a video."""

import numpy as np
import pytest

from bags_jax.camera_path import focus_point, look_at, loop, meeting_point, spiral, stand_around
from bags_jax.config import load_config, read_config
from bags_jax.data.poses import locate_cameras
from bags_jax.job import load_photographs


@pytest.fixture
def cameras():
    """Returns the training cameras of an embedded scene and the point that they look at."""
    scene = load_photographs(read_config(load_config("procedural:motion,smoke")))
    viewmats = scene.viewmats[scene.train_ids]
    return viewmats, focus_point(viewmats, scene.points)


def test_spiral_looks_at_the_focus(cameras):
    viewmats, focus = cameras
    for viewmat in spiral(viewmats, focus=focus, num_frames=7):
        seen = viewmat[:3, :3] @ focus + viewmat[:3, 3]
        assert np.abs(seen[:2]).max() < 1e-4 * seen[2]  # in the image centre, in front
        np.testing.assert_allclose(viewmat[:3, :3] @ viewmat[:3, :3].T, np.eye(3), atol=1e-5)
        assert np.linalg.det(viewmat[:3, :3]) > 0
        assert viewmat[1, :3] @ viewmats[:, 1, :3].mean(axis=0) > 0.5  # not upside down


def test_spiral_closes_and_stays_near_the_cameras(cameras):
    viewmats, focus = cameras
    path, centers = locate_cameras(spiral(viewmats, focus=focus, num_frames=60)), locate_cameras(viewmats)
    steps = np.linalg.norm(np.diff(path, axis=0, append=path[:1]), axis=1)
    assert steps[-1] < 2 * np.median(steps) and steps.max() < 4 * np.median(steps)
    spread = np.linalg.norm(centers - centers.mean(axis=0), axis=1).max()
    assert np.linalg.norm(path - centers.mean(axis=0), axis=1).max() <= 2 * spread
    assert np.ptp(path, axis=0).max() > 0.1 * spread  # the cameras move


def test_focus_is_at_the_median_depth():
    viewmats = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    points = np.array([[0, 0, 1], [1, 0, 4], [0, 1, 9], [0, 0, -5]], np.float32)
    np.testing.assert_allclose(focus_point(viewmats, points), [0, 0, 4], atol=1e-6)
    np.testing.assert_allclose(focus_point(viewmats, points[:0]), [0, 0, 1], atol=1e-6)


def ring(num: int, *, degrees: float = 360.0, depth: float = 0.0, turn: float = 0.0) -> np.ndarray:
    """Returns cameras around (1, 2, 3), 4 units away horizontally, y down, turned away from it by `turn` rad."""
    subject = np.array([1.0, 2.0, 3.0])
    angles = np.radians(degrees) * np.arange(num) / num
    centers = subject + np.stack([4 * np.cos(angles), np.full(num, depth), 4 * np.sin(angles)], axis=-1)
    targets = subject + turn * np.stack([-4 * np.sin(angles), 0 * angles, 4 * np.cos(angles)], axis=-1)
    return np.stack([look_at(c, t, np.array([0.0, 1, 0])) for c, t in zip(centers, targets, strict=True)])


@pytest.mark.parametrize("degrees, depth", [(360.0, 0.0), (300.0, 0.0), (360.0, -3.0)], ids=["level", "arc", "raised"])
def test_loop_is_an_orbit_around_the_subject(degrees, depth):
    viewmats = ring(24, degrees=degrees, depth=depth)
    path = loop(viewmats, np.zeros((0, 3), np.float32), num_frames=40)
    offsets = locate_cameras(path) - [1, 2, 3]
    np.testing.assert_allclose(offsets[:, 1], depth, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(offsets[:, [0, 2]], axis=1), 4.0, atol=1e-3)
    assert np.ptp(offsets, axis=0)[[0, 2]].min() > 7.9  # on all sides
    seen = np.einsum("vij,j->vi", path[:, :3, :3], [1, 2, 3]) + path[:, :3, 3]
    assert np.abs(seen[:, :2]).max() < 1e-3 and (path[:, 1, 1] > 0.7).all()  # in the image centre, not upside down


@pytest.mark.parametrize("viewmats", [ring(12, degrees=90.0), ring(12, turn=5.0)[:4]], ids=["a quarter", "past it"])
def test_loop_is_a_spiral_for_cameras_on_one_side(viewmats):
    assert not stand_around(viewmats, meeting_point(viewmats))
    points = np.array([[1.0, 2.0, 3.0]], np.float32)
    expected = spiral(viewmats, focus=focus_point(viewmats, points), num_frames=5)
    np.testing.assert_array_equal(loop(viewmats, points, num_frames=5), expected)


@pytest.mark.parametrize("jitter", [0.0, 0.05, 0.15])
def test_a_row_of_cameras_surrounds_nothing(jitter):
    """Nearly parallel axes can meet anywhere, also between the cameras."""
    down, found = np.array([0.0, 1, 0]), []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        centers = np.stack([np.linspace(-5, 5, 40), 0.1 * rng.normal(size=40), np.full(40, -1.0)], axis=-1)
        ahead = np.array([0.0, 0, 1]) + jitter * rng.normal(size=(40, 3))
        viewmats = np.stack([look_at(c, c + d, down) for c, d in zip(centers, ahead, strict=True)])
        found.append(stand_around(viewmats, meeting_point(viewmats)))
    assert not any(found)


def test_orbit_is_level_if_one_side_has_more_photographs():
    many = np.concatenate([ring(24, depth=-4.0), ring(20, degrees=90.0, depth=-4.0)])
    path = loop(many, np.zeros((0, 3), np.float32), num_frames=12)
    np.testing.assert_allclose(locate_cameras(path)[:, 1], 2.0 - 4.0, atol=1e-3)


def test_cameras_that_look_outwards_surround_nothing():
    viewmats = ring(12)
    viewmats[:, :3] = viewmats[:, :3] * np.array([-1.0, 1.0, -1.0])[:, None]  # each turned about its own vertical
    assert not stand_around(viewmats, meeting_point(viewmats))


def test_loop_over_cameras_that_look_down_with_opposite_yaw():
    """Their down vectors cancel or are parallel to the view: right and left are arbitrary, but must be defined."""
    down = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])  # looks along -z
    viewmats = np.tile(np.eye(4), (4, 1, 1))
    for i, turn in enumerate((1, -1, 1, -1)):
        viewmats[i, :3, :3] = np.diag([turn, turn, 1.0]) @ down
        viewmats[i, :3, 3] = -viewmats[i, :3, :3] @ [i, 0.0, 5.0]
    for viewmat in loop(viewmats, np.zeros((1, 3), np.float32), num_frames=6):
        np.testing.assert_allclose(viewmat[:3, :3] @ viewmat[:3, :3].T, np.eye(3), atol=1e-5)
    straight = look_at(np.zeros(3), np.array([0.0, 2.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(straight[:3, :3] @ straight[:3, :3].T, np.eye(3), atol=1e-6)


def test_look_at_puts_the_down_vector_at_the_bottom():
    viewmat = look_at(np.array([0.0, 0, -3]), np.zeros(3), np.array([0.0, 1, 0]))
    np.testing.assert_allclose(viewmat @ np.array([0.0, 0.5, 0, 1]), [0, 0.5, 3, 1], atol=1e-6)
