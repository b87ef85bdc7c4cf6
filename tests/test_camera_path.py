"""Tests positions and directions of the cameras of a video."""

import json

import numpy as np
import pytest

from bags_jax.camera_file import read_camera_path
from bags_jax.camera_path import (
    focus_point,
    interpolate,
    look_at,
    loop,
    meeting_point,
    orbit_subject,
    spiral,
    stand_around,
)
from bags_jax.config import load_config, read_config
from bags_jax.data.poses import locate_cameras, make_rigid, make_rotation
from bags_jax.errors import UserError
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


# --- orbit -----------------------------------------------------------------------------------------------------------

POINTS = np.array([[1.0, 2.0, 3.0]], np.float32)


def test_an_orbit_turns_about_the_given_axis():
    down = make_rotation(np.array([0.2, 0.0, -0.1])) @ [0.0, 1.0, 0.0]
    path = orbit_subject(ring(24, depth=-1.0), POINTS, down=down, num_frames=30)
    offsets = locate_cameras(path) - POINTS[0]
    assert np.ptp(offsets @ down) < 1e-3 and np.ptp(np.linalg.norm(offsets, axis=1)) < 1e-3
    assert np.linalg.norm(offsets.mean(axis=0) - down * (offsets @ down).mean()) < 1e-3  # on all sides


def test_an_orbit_swings_where_photographs_do_not_surround_the_subject():
    viewmats = ring(13, degrees=60.0)
    path = orbit_subject(viewmats, POINTS, down=np.array([0.0, 1.0, 0.0]), num_frames=40)
    centers, seen = locate_cameras(viewmats), locate_cameras(path)
    gaps = np.linalg.norm(seen[:, None] - centers[None], axis=-1).min(axis=1)
    assert gaps.max() < 0.5  # each frame is near a photograph; they stand 4 from the subject, 0.3 apart
    assert np.linalg.norm(seen[10] - seen[30]) > 0.7 * np.linalg.norm(centers[0] - centers[-1])
    assert np.linalg.norm(seen[-1] - seen[0]) < 0.6  # it closes


# --- interpolation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [2, 7, 97])
def test_interpolation_passes_through_all_cameras_without_a_jump(num_frames):
    viewmats = ring(9, degrees=140.0, depth=1.0, turn=0.3)
    path = interpolate(viewmats, num_frames=num_frames)
    np.testing.assert_allclose(path[[0, -1]], viewmats[[0, -1]], atol=1e-5)
    rotations = path[:, :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (num_frames, 1, 1)), atol=1e-5
    )
    if num_frames == 97:  # 12 frames from each camera of the even ring to the next
        np.testing.assert_allclose(path[::12], viewmats, atol=1e-4)
        steps = np.linalg.norm(np.diff(locate_cameras(path), axis=0), axis=1)
        assert steps.max() < 1.3 * steps.min()


def test_interpolation_of_one_camera_and_of_cameras_in_one_place():
    viewmats = ring(3)
    np.testing.assert_array_equal(interpolate(viewmats[:1], num_frames=4), viewmats[[0, 0, 0, 0]])
    for same in (
        viewmats[[1, 1, 1]],
        np.stack([make_rigid(make_rotation(np.array([0, x, 0])), np.zeros(3)) for x in (0.0, 0.5)]),
    ):
        assert np.isfinite(interpolate(same, num_frames=5)).all()


# --- camera paths of nerfstudio --------------------------------------------------------------------------------------


def camera_file(**changes):
    pose = np.eye(4)
    pose[:3, 3] = (1, 2, 3)
    camera = {"camera_to_world": pose.ravel().tolist(), "fov": 60.0, "aspect": 1.5}
    values = {"camera_type": "perspective", "render_height": 40, "render_width": 60, "fps": 24, "seconds": 1}
    return {**values, "camera_path": [camera, {**camera, "camera_to_world": pose.tolist()}], **changes}


def test_a_camera_path_of_nerfstudio(tmp_path):
    (tmp_path / "path.json").write_text(json.dumps(camera_file()))
    path = read_camera_path(tmp_path / "path.json")
    assert path.fps == 24 and path.ids is None and path.sizes.tolist() == [[40, 60]] * 2
    np.testing.assert_allclose(locate_cameras(path.viewmats), [[1, 2, 3]] * 2)
    seen = path.viewmats[0] @ [1, 2, 2, 1]  # 1 ahead: OpenGL cameras look along -z
    np.testing.assert_allclose(seen[:3], [0, 0, 1], atol=1e-6)
    above = path.viewmats[0] @ [1, 2.5, 2, 1]
    assert above[1] < 0  # +y is up
    np.testing.assert_allclose(path.Ks[0], [[34.641, 0, 30], [0, 34.641, 20], [0, 0, 1]], atol=1e-3)


BROKEN = {
    "not json": ("{", "not readable json"),
    "a list": ("[]", "has no cameras"),
    "no cameras": (camera_file(camera_path=[]), "has no cameras"),
    "a panorama": (camera_file(camera_type="equirectangular"), "expected perspective"),
    "no size": (camera_file(render_width=None), "render_width is None"),
    "a huge size": (camera_file(render_height=10**9), "render_height is 1000000000"),
    "half a pixel": (camera_file(render_height=0.5), "render_height is 0.5"),
    "no pose": (camera_file(camera_path=[{"fov": 50}]), "camera 0: camera_to_world is no camera pose"),
    "a word": (camera_file(camera_path=["pose"]), "camera 0: camera_to_world"),
    "numbers": (camera_file(camera_path=[{"fov": 50, "camera_to_world": [1] * 16}]), "no camera pose"),
    "a mirror": (
        camera_file(camera_path=[{"fov": 50, "camera_to_world": np.diag([1.0, 1, -1, 1]).tolist()}]),
        "no camera pose",
    ),
    "infinity": (camera_file(camera_path=[{"fov": 50, "camera_to_world": [float("inf")] * 16}]), "no camera pose"),
    "no fov": (camera_file(camera_path=[{"camera_to_world": np.eye(4).tolist()}]), "fov is None"),
    "a flat fov": (camera_file(camera_path=[{"camera_to_world": np.eye(4).tolist(), "fov": 180}]), "fov is 180"),
}


@pytest.mark.parametrize("values, says", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_camera_path_is_refused_in_one_line(tmp_path, values, says):
    path = tmp_path / "path.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(UserError, match=says) as caught:
        read_camera_path(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
