"""Tests the up direction of captures whose up direction is known."""

import pathlib

import numpy as np
import pytest

from bags_jax.config import load_config, read_config
from bags_jax.data.poses import look_at, make_rotation
from bags_jax.errors import UserError
from bags_jax.job import load_photographs
from bags_jax.upright import Upright, find_up, read_up, rotation_to

BLURBALL = pathlib.Path(__file__).parents[2] / "shared" / "data" / "blurball"
Z_UP = np.array([0.0, 0.0, 1.0])


def error_deg(found: Upright, truth=Z_UP) -> float:
    np.testing.assert_allclose(np.linalg.norm(found.direction), 1.0, atol=1e-6)
    return float(np.degrees(np.arccos(np.clip(found.direction @ truth, -1, 1))))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["still_life", "corner", "relief"])
def test_the_embedded_worlds_have_z_up(layout):
    config = load_config("procedural:motion,smoke")
    config.synthetic.layout = layout
    config.synthetic.num_train = 24
    scene = load_photographs(read_config(config))
    found = find_up(scene.viewmats, scene.points)
    assert error_deg(found) < 2.0 and found.uncertainty_deg < 6.0
    turn = make_rotation(np.array([0.7, -1.9, 0.4]))  # another world frame
    viewmats = scene.viewmats.astype(np.float64)
    viewmats[:, :3, :3] = viewmats[:, :3, :3] @ turn.T
    again = find_up(viewmats, scene.points @ turn.T)
    assert error_deg(again, turn @ Z_UP) < 2.0


@pytest.mark.skipif(not BLURBALL.is_dir(), reason="no shared data")
def test_a_real_capture_has_up_near_the_images_up():
    from bags_jax.data import load_scene

    scene = load_scene(str(BLURBALL), format="colmap", factor=4)
    found = find_up(scene.viewmats, scene.points)
    ups = -scene.viewmats[:, 1, :3] @ found.direction
    rights = scene.viewmats[:, 0, :3] @ found.direction
    assert np.median(ups) > 0.8 and np.degrees(np.abs(np.arcsin(np.median(rights)))) < 2.0


def ring(num: int, *, pitch: float, roll: float = 0.0, degrees: float = 360.0) -> np.ndarray:
    """Cameras on an arc around the origin that look down by `pitch` degrees, with z up; roll in degrees, random."""
    rng = np.random.default_rng(0)
    angles, lean = np.radians(degrees) * np.arange(num) / num, np.radians(pitch)
    centers = 4 * np.stack(
        [np.cos(angles) * np.cos(lean), np.sin(angles) * np.cos(lean), np.full(num, np.sin(lean))], -1
    )
    viewmats = np.stack([look_at(center, np.zeros(3), -Z_UP) for center in centers])
    turns = [make_rotation(np.array([0, 0, np.radians(roll) * x])) for x in rng.standard_normal(num)]
    viewmats[:, :3] = np.stack(turns) @ viewmats[:, :3]
    return viewmats


@pytest.mark.parametrize("pitch", [-10.0, 0.0, 45.0, 75.0])
def test_pitch_of_a_walk_around_does_not_matter(pitch):
    assert error_deg(find_up(ring(24, pitch=pitch), np.zeros((0, 3)))) < 0.1


def test_roll_averages_out_and_raises_the_uncertainty():
    level, tilted = (find_up(ring(30, pitch=30.0, roll=roll, degrees=120.0), np.zeros((0, 3))) for roll in (0.0, 8.0))
    assert error_deg(level) < 2.0 and error_deg(tilted) < 6.0
    assert tilted.uncertainty_deg > 1.5 * level.uncertainty_deg


def test_photographs_on_their_side_are_left_out():
    viewmats = ring(24, pitch=30.0)
    viewmats[::4, :3] = make_rotation(np.array([0, 0, np.pi / 2])) @ viewmats[::4, :3]
    assert error_deg(find_up(viewmats, np.zeros((0, 3)))) < 0.1


def test_the_floor_corrects_cameras_that_all_look_down_and_a_wall_does_not_mislead():
    rng = np.random.default_rng(0)
    flat = rng.uniform(-2, 2, (600, 3)) * [1, 1, 0.003]
    viewmats = ring(8, pitch=25.0, degrees=4.0)  # a forward-facing capture
    alone = find_up(viewmats, np.zeros((0, 3)))
    assert error_deg(alone) > 15.0 and alone.uncertainty_deg > 8.0
    assert error_deg(find_up(viewmats, flat)) < 1.0
    wall = flat[:, [2, 1, 0]]
    np.testing.assert_array_equal(find_up(viewmats, wall).direction, alone.direction)
    cloud = rng.standard_normal((600, 3))
    np.testing.assert_array_equal(find_up(viewmats, cloud).direction, alone.direction)


def test_one_photograph_and_broken_points_give_a_direction():
    viewmat = look_at(np.array([0.0, -3, 0]), np.zeros(3), -Z_UP)[None]
    for points in (np.zeros((0, 3)), np.full((200, 3), np.nan), np.zeros((200, 3))):
        found = find_up(viewmat, points)
        assert error_deg(found) < 1e-3 and found.uncertainty_deg > 10.0


@pytest.mark.parametrize(
    "text, direction",
    [("z", Z_UP), ("-Y", [0, -1, 0]), ("+x", [1, 0, 0]), ("0,0,2e3", Z_UP), (" 0, -3 ,4", [0, -0.6, 0.8])],
)
def test_a_given_direction_is_read(text, direction):
    np.testing.assert_allclose(read_up(text).direction, direction)


@pytest.mark.parametrize("text", ["", "w", "0,0,0", "1,2", "1,2,3,4", "nan,0,1", "inf,0,1", "1;2;3", "--z"])
def test_a_bad_direction_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="--up=0,0,1") as caught:
        read_up(text)
    assert "\n" not in str(caught.value)


def test_the_smallest_rotation():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    pairs = [*zip(vectors[:3], vectors[3:]), (Z_UP, Z_UP), (Z_UP, -Z_UP), (vectors[0], -vectors[0])]
    for source, target in pairs:
        rotation = rotation_to(source, target)
        np.testing.assert_allclose(rotation @ source, target, atol=1e-9)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0
        across = np.cross(source, target)
        np.testing.assert_allclose(rotation @ across, across, atol=1e-9)
