"""The embedded scene: deterministic, fully covered by surfaces, blurred as the physics says, cached safely."""

import numpy as np
import pytest

from bags_jax.data import exposures, procedural, raycast
from bags_jax.data.procedural import make_scene
from bags_jax.data.still_life import still_life
from bags_jax.errors import UserError

SMALL = {"width": 64, "height": 42, "num_train": 6, "num_test": 2, "num_points": 160}


@pytest.fixture(autouse=True, scope="module")
def cache_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def linear(image):
    value = image / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def gradient_energy(image, where=None):
    value = image.astype(float).mean(-1)
    energy = np.square(np.diff(value, axis=1))[:-1] + np.square(np.diff(value, axis=0))[:, :-1]
    return energy.mean() if where is None else energy[where[:-1, :-1]].mean()


def depth_map(scene, view):
    height, width = scene.images[view].shape[:2]
    return raycast.render_frame(still_life(), scene.viewmats[view], scene.Ks[view], height=height, width=width)[1]


def assert_same(a, b):
    for name in (
        "names",
        "images",
        "sharp_images",
        "viewmats",
        "Ks",
        "train_ids",
        "test_ids",
        "points",
        "point_colors",
    ):
        np.testing.assert_array_equal(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)), err_msg=name)


@pytest.mark.parametrize("blur", procedural.BLURS)
def test_shapes_and_truth(blur):
    scene = make_scene(blur, **SMALL)
    assert list(scene.names) == sorted(scene.names) and len(set(scene.names)) == 8
    assert [scene.names[i] for i in scene.test_ids] == ["test_000.png", "test_001.png"]
    assert sorted([*scene.train_ids, *scene.test_ids]) == list(range(8))
    for image, truth in zip(scene.images, scene.sharp_images, strict=True):
        assert image.shape == truth.shape == (42, 64, 3) and image.dtype == truth.dtype == np.uint8
    assert scene.viewmats.shape == (8, 4, 4) and scene.Ks.shape == (8, 3, 3)
    assert scene.points.shape == scene.point_colors.shape == (160, 3)
    assert 0 <= scene.point_colors.min() and scene.point_colors.max() <= 1
    turns = scene.viewmats[:, :3, :3]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (8, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-5)
    for i in scene.test_ids:
        np.testing.assert_array_equal(scene.images[i], scene.sharp_images[i])
    same = [np.array_equal(scene.images[i], scene.sharp_images[i]) for i in scene.train_ids]
    assert sum(same) == {"motion": 0, "defocus": 0, "mixed": 2, "none": 6}[blur]


def generate(blur, **options):
    """A tiny scene, past the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procedural, "_cache_path", lambda _: None)
        return make_scene(
            blur, **({"width": 24, "height": 16, "num_train": 3, "num_test": 1, "num_points": 50} | options)
        )


def test_seed_decides_everything():
    first = generate("motion", seed=0)
    assert_same(first, generate("motion", seed=0))
    other = generate("motion", seed=1)
    assert not np.allclose(first.viewmats, other.viewmats)
    assert not np.allclose(first.points, other.points)
    truth = generate("none", seed=0)  # the blur changes neither cameras nor points
    np.testing.assert_array_equal(first.viewmats, truth.viewmats)
    np.testing.assert_array_equal(first.points, truth.points)
    np.testing.assert_array_equal(first.sharp_images, truth.images)


def test_every_pixel_sees_a_surface_at_a_sensible_depth():
    scene = make_scene("none", **SMALL)
    for view in range(len(scene.names)):
        depths = depth_map(scene, view)
        assert 0.5 < depths.min() and depths.max() < 12


def test_layout_does_not_depend_on_the_resolution():
    small, large = make_scene("none", **SMALL), make_scene("none", **(SMALL | {"width": 128, "height": 84}))
    np.testing.assert_array_equal(small.viewmats, large.viewmats)
    np.testing.assert_allclose(2 * small.Ks[:, :2], large.Ks[:, :2], rtol=1e-6)
    halved = linear(large.images[3]).reshape(42, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - linear(small.images[3])).mean() < 0.01  # the two sample pixels differently


def test_points_lie_on_surfaces_and_have_their_colors():
    scene = make_scene("none", **(SMALL | {"width": 128, "height": 84}))
    seen = np.zeros(len(scene.points), bool)
    errors = []
    for view in scene.train_ids:
        x, y, z = scene.viewmats[view][:3, :3] @ scene.points.T + scene.viewmats[view][:3, 3:]
        column = np.floor(scene.Ks[view][0, 0] * x / z + scene.Ks[view][0, 2]).astype(int)
        row = np.floor(scene.Ks[view][1, 1] * y / z + scene.Ks[view][1, 2]).astype(int)
        inside = np.flatnonzero((column >= 0) & (column < 128) & (row >= 0) & (row < 84) & (z > 0))
        depths = depth_map(scene, view)[row[inside], column[inside]]
        near = inside[np.abs(depths - z[inside]) < 0.15]
        seen[near] = True
        errors.append(np.abs(scene.images[view][row[near], column[near]] / 255 - scene.point_colors[near]).mean(-1))
    assert seen.mean() > 0.9
    errors = np.concatenate(errors)
    assert np.median(errors) < 0.06 and (errors < 0.2).mean() > 0.8  # the rest lie on edges of the textures


def test_motion_blurs_and_keeps_the_light():
    scene = make_scene("motion", **SMALL)
    ratios = []
    for view in scene.train_ids:
        image, truth = scene.images[view], scene.sharp_images[view]
        ratios.append(gradient_energy(image) / gradient_energy(truth))
        assert linear(image).mean() == pytest.approx(linear(truth).mean(), rel=0.06)  # what crosses the border differs
    assert max(ratios) < 1.05  # the nearly sharp view included: its samples lie differently within the pixels
    assert sorted(ratios)[-2] < 0.95 and np.median(ratios) < 0.75


def test_motion_path_has_the_length_asked_for():
    lengths = exposures.path_lengths(24)
    assert (lengths < 0.4).sum() == 3 and lengths.max() <= 6.6 and (lengths > 2.5).mean() > 0.6
    scene = make_scene("none", **SMALL)
    points = np.concatenate([scene.points.T, np.ones((1, 160))])
    shake = 0.02 * exposures.draw_shake(np.random.default_rng(0))
    np.testing.assert_array_equal(exposures.pose_at(scene.viewmats[3], shake, 0.0), scene.viewmats[3])
    length = exposures.path_length(points, scene.viewmats[3], scene.Ks[3], shake)
    ends = [exposures.pose_at(scene.viewmats[3], shake, t) @ points for t in (-0.5, 0.5)]
    chord = np.subtract(*[(scene.Ks[3] @ end[:3] / end[2])[:2] for end in ends])
    assert length >= np.linalg.norm(chord, axis=0).mean()


def test_defocus_blurs_what_is_out_of_focus():
    scene = make_scene("defocus", **SMALL)
    near_view, far_view = scene.train_ids[[0, 2]]  # focus goes near, middle, far in turn
    kept = {}
    for view in (near_view, far_view):
        depths = depth_map(scene, view)
        for name, where in (("near", depths < 3.2), ("far", depths > 4.8)):
            kept[view, name] = gradient_energy(scene.images[view], where) / gradient_energy(
                scene.sharp_images[view], where
            )
    assert kept[near_view, "near"] > 1.5 * kept[near_view, "far"]
    assert kept[far_view, "far"] > 1.5 * kept[far_view, "near"]


def test_mixed_loses_what_is_above_the_cutoff():
    scene = make_scene("mixed", **(SMALL | {"width": 64, "height": 64}))
    frequencies = np.abs(np.fft.fftfreq(64))
    above = np.maximum.outer(frequencies, frequencies) > 0.3  # half the resolution keeps 0.25 cycles / px
    kept = []
    for view in scene.train_ids:
        powers = [np.abs(np.fft.fft2(x[view].astype(float).mean(-1))) ** 2 for x in (scene.images, scene.sharp_images)]
        kept.append(powers[0][above].sum() / powers[1][above].sum())
    assert sum(share == 1.0 for share in kept) == 2
    assert sorted(kept)[3] < 0.12  # bicubic interpolation is not an ideal filter


def test_cache_hit_is_the_same_and_a_corrupt_file_is_replaced(cache_home, monkeypatch):
    arguments = ("none",), {"width": 24, "height": 16, "num_train": 2, "num_test": 1, "num_points": 20, "seed": 5}
    before = set(cache_home.rglob("*"))
    first = make_scene(*arguments[0], **arguments[1])
    (path,) = {p for p in cache_home.rglob("*") if p.is_file()} - before
    with monkeypatch.context() as patch:
        patch.setattr(procedural, "_generate", lambda *_: pytest.fail("the cache was not read"))
        assert_same(first, make_scene(*arguments[0], **arguments[1]))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (b"", b"not a cache", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        assert_same(first, make_scene(*arguments[0], **arguments[1]))
        assert path.read_bytes() != damaged
    assert not list(cache_home.rglob("*.tmp"))


def test_without_a_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    scene = make_scene("none", width=16, height=16, num_train=2, num_test=0, num_points=0)
    assert len(scene.images) == 2 and scene.points.shape == (0, 3) and scene.test_ids.shape == (0,)


@pytest.mark.parametrize(
    ("blur", "options", "words"),
    [
        ("fog", {}, "fog.*motion, defocus, mixed, none"),
        ("motion", {"width": 15}, "15 x 84.*at least 16"),
        ("motion", {"height": 8}, "128 x 8.*at least 16"),
        ("none", {"num_train": 1}, "num_train=1.*at least 2"),
        ("none", {"num_points": -1}, "num_points=-1"),
    ],
)
def test_bad_arguments(blur, options, words):
    with pytest.raises(UserError, match=words) as caught:
        make_scene(blur, **options)
    assert "\n" not in str(caught.value)


def test_frame_equals_rays_cast_one_by_one():
    scene = make_scene("none", **SMALL)
    world, viewmat, K = still_life(), scene.viewmats[4], scene.Ks[4]
    colors, depths = raycast.render_frame(world, viewmat, K, height=42, width=64)
    rows, columns = np.mgrid[0.5:42, 0.5:64].reshape(2, -1)
    origin, directions = raycast.camera_rays(viewmat, K, np.stack([columns, rows]))
    t, radiance = raycast.cast(world, origin, directions)
    np.testing.assert_allclose(depths.ravel(), t, rtol=1e-4)  # frames skip what a solid's screen box leaves out
    assert np.abs(colors.reshape(-1, 3) - radiance).max() < 1e-3


def test_light_falls_off_as_lambert_says():
    def paint(level):
        return lambda face, x, y: np.full((*x.shape, 3), level, np.float32)

    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    solids = (
        raycast.Solid("box", zero, 6 * one, paint(0.0), hollow=True, unseen_faces=tuple(range(6))),  # black: no bounce
        raycast.Solid("sphere", zero, one, paint(0.5)),
    )
    light = raycast.Light(np.array([0, -5, 0], np.float32), 0.01, 8 * one, zero)
    world = raycast.make_world(solids, light)
    angles = np.radians([0, 30, 60, 100, 180]).astype(np.float32)  # from the light's direction
    normals = np.stack([np.sin(angles), -np.cos(angles), np.zeros(5, np.float32)])
    t, radiance = raycast.cast(world, 3 * normals, -normals)
    np.testing.assert_allclose(t, 2.0, rtol=1e-5)
    towards = light.center[:, None] - normals
    distance = np.linalg.norm(towards, axis=0)
    expected = 0.5 * 8 * np.maximum((towards * normals).sum(0), 0) / distance**3
    np.testing.assert_allclose(radiance[:, 0], expected, rtol=0.02, atol=1e-3)  # the light map is sampled, not exact
