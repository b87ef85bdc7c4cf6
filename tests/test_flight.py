"""The flight by night: its world, the noise of its photographs, and motion that comes from the flight."""

import math

import numpy as np
import pytest
import test_procedural

from bags_jax.synthetic import bake, exposures, flight, procedural, raycast
from bags_jax.synthetic.paint import plain
from bags_jax.synthetic.sensor import Sensor

SIZE = {"width": 48, "height": 32}
OPTIONS = {"layout": "flight", **SIZE, "num_train": 4, "num_test": 1, "num_points": 120, "seed": 3}


@pytest.fixture(autouse=True, scope="module")
def no_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procedural, "_find_cache_path", lambda _: None)
        yield


def generate(blur, **options):
    """Renders a small scene."""
    return procedural.make_scene(blur, **(OPTIONS | options))


@pytest.fixture(scope="module")
def scene():
    return generate("motion")


@pytest.fixture(scope="module")
def views():
    """12 views of the flight: radiance and depth of each."""
    key, K = np.random.default_rng(0), np.array([[0.9 * 48, 0, 24], [0, 0.9 * 48, 16], [0, 0, 1]], np.float32)
    places = [flight.LAYOUT.place_camera(i, 24, key) for i in range(0, 24, 2)]
    viewmats = [procedural._make_viewmat(*place).astype(np.float32) for place in places]
    return [raycast.render_frame(flight.LAYOUT.make_world(), viewmat, K, **SIZE) for viewmat in viewmats]


def test_scenes_equal_the_golden_file():
    arrays = test_procedural.make_golden_arrays(("flight",))
    test_procedural.assert_close_to_golden(arrays, np.load(test_procedural.GOLDEN))


def test_depths_are_those_of_an_unbounded_scene(views):
    depths = np.stack([depth for _, depth in views])
    assert 3.0 < depths.min() < 5.0 and depths.max() > 300  # the nearest trees and roofs; the sky
    sees_sky = [(depth > 330).mean() > 0.02 for _, depth in views]
    assert 2 <= sum(sees_sky) <= 9  # some views see the horizon, some look down
    assert np.mean(depths > 60) > 0.05 and 9 < np.median(depths) < 25


def test_it_is_night_and_lamps_clip(views):
    light = np.stack([light for light, _ in views])
    assert light.max() > 5 and 0.005 < (light.max(-1) > 1).mean() < 0.06
    grays = exposures.encode_srgb(light).mean(-1)
    assert 35 < grays.mean() < 75 and np.median(grays) < 60 and grays.std() > 35
    assert np.percentile(grays, 2) > 4  # dark, but not black


def test_motion_is_the_flight_and_its_vibration(scene):
    """The drone flies along the street: near points pass faster than far ones, away from where it flies to."""
    key = np.random.default_rng(0)
    motion = np.mean([flight.LAYOUT.draw_motion(scene.viewmats[3], key) for _ in range(200)], axis=0)
    velocity = -scene.viewmats[3][:3, :3].T @ motion[0, :3]  # world frame
    assert np.linalg.norm(velocity) == pytest.approx(1.0, abs=0.05) and abs(velocity[2]) < 0.05
    x, y = -scene.viewmats[3][:3, :3].T @ scene.viewmats[3][:3, 3] @ np.eye(3)[:, :2] - [22, 0]
    assert abs(velocity[:2] @ [x, y]) / math.hypot(x, y) < 0.1  # along the circle of the street
    assert np.abs(motion[1:]).max() < 0.02  # vibration has no mean
    world, ratios = flight.LAYOUT.make_world(), []
    for view in scene.train_ids:
        depths = raycast.render_frame(world, scene.viewmats[view], scene.Ks[view], **SIZE)[1]
        near, far = (depths < np.percentile(depths, 20)), (depths > np.percentile(depths, 80))
        ratios.append(scene.blur_px[view][near].mean() / scene.blur_px[view][far].mean())
    assert np.median(ratios) > 1.5 and min(ratios) > 0.7  # where the drone mostly shakes, all depths blur alike


def test_lamps_draw_trails():
    """Light above white stays white along the path: the mean of the exposure is not the mean of clipped images."""
    K, viewmat = np.array([[43, 0, 24], [0, 43, 16], [0, 0, 1]], np.float32), generate("none").viewmats[4]
    world, shake = flight.LAYOUT.make_world(), np.zeros((3, 6))
    shake[0, 4] = 0.12  # turns sideways
    moved = exposures.render_shaken(world, viewmat, K, shake, 5.0, **SIZE)
    times = (np.arange(16) + 0.5) / 16 - 0.5
    frames = [raycast.render_frame(world, exposures.shake_pose(viewmat, shake, t), K, **SIZE)[0] for t in times]
    clipped = np.mean([np.minimum(frame, 1.0) for frame in frames], axis=0)
    assert (moved >= 1).mean() > 1.5 * (clipped >= 0.95).mean()
    assert moved.mean() > 1.1 * clipped.mean()


@pytest.mark.parametrize("light", [0.0, 0.02, 0.3])
def test_noise_has_the_variance_of_theory(light):
    sensor = Sensor(full_well=800.0, read_noise=6.0)
    values = sensor.expose(np.full((200, 500), light), np.random.default_rng(2))
    assert values.mean() == pytest.approx(light, abs=4 * math.sqrt((light + 0.05) / 800 / 1e5))
    assert values.var() == pytest.approx((light + 36 / 800) / 800, rel=0.03)


def test_a_full_pixel_saturates():
    values = Sensor(full_well=800.0, read_noise=0.0).expose(np.array([0.999, 1.5, 40.0]), np.random.default_rng(0))
    assert values.max() == 1.0 and values[2] == 1.0


@pytest.mark.parametrize("blur", ["none", "reduced"])
def test_only_training_photographs_have_noise(blur, scene):
    """Cameras, points and truth do not depend on the blur; the noise is the same in every run."""
    other = generate(blur)
    for name in ("viewmats", "points", "sharp_images"):
        np.testing.assert_array_equal(getattr(other, name), getattr(scene, name))
    for view in other.test_ids:
        np.testing.assert_array_equal(other.images[view], other.sharp_images[view])
    if blur == "none":
        off = np.stack([exposures.decode_srgb(other.images[i]) for i in other.train_ids])
        truth = np.stack([exposures.decode_srgb(other.sharp_images[i]) for i in other.train_ids])
        dim = (truth > 0.05) & (truth < 0.5)  # neither black nor white, where clipping narrows the noise
        sensor = flight.LAYOUT.sensor
        expected = (truth[dim] + sensor.read_noise**2 / sensor.full_well) / sensor.full_well
        assert np.square(off - truth)[dim].mean() == pytest.approx(expected.mean(), rel=0.15)
        assert not any(x.any() for x in other.blur_px)  # noise is no blur
        np.testing.assert_array_equal(np.stack(other.images), np.stack(generate("none").images))


def test_points_are_neither_on_the_sky_nor_exact(scene):
    centers = -np.einsum("vji,vj->vi", scene.viewmats[:, :3, :3], scene.viewmats[:, :3, 3])
    distances = np.linalg.norm(scene.points[:, None] - centers, axis=-1).min(1)
    assert distances.max() < 1.3 * flight.LAYOUT.farthest_point
    assert distances.max() > 40 and distances.min() < 8


def test_light_and_lamps_add_and_emission_is_not_clipped():
    """A lamp lights what is near and nothing beyond its reach; a solid that shines keeps its radiance in the atlas."""

    def shine(face, x, y):
        return np.full((*x.shape, 3), 7.5, np.float32)

    zero = np.zeros(3, np.float32)
    room = raycast.Solid("box", zero, np.full(3, 6, np.float32), plain("#808080"), hollow=True, texels=4.0)
    bulb = raycast.Solid("sphere", zero, np.full(3, 0.5, np.float32), plain("#000000"), texels=4.0, emission=shine)
    dark = bake.Light(np.array([0, 0, 5.5], np.float32), 0.1, zero, zero)
    lamp = bake.Lamp(np.array([0, 0, -4], np.float32), radius=0.1, power=np.full(3, 2.0, np.float32), reach=5.0)
    world = bake.make_world((room, bulb), dark, (lamp,))

    def look(direction):
        origin = np.array([[0.0], [0.0], [-1.0]], np.float32)
        return raycast.cast(world, origin, np.array(direction, np.float32)[:, None])[1][0, 0]

    assert look((0, 0, 1)) == pytest.approx(7.5)  # the bulb
    below = look((0, 0, -1))  # the floor, 2 below the lamp
    bounce = 0.05
    expected = 0.2159 * 2.0 / 4 * (1 - (2 / 5) ** 2) ** 2
    assert expected * 0.95 < below < expected + bounce
    assert look((0.6, 0.6, 1)) < 0.15 * below  # the ceiling is out of reach: the bounce alone
