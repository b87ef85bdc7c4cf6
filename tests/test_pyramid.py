"""The training views at every image scale."""

import numpy as np
import pytest

from bags_jax.data.pyramid import make_dataset, resize, scale_size
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.synthetic import make_scene
from bags_jax.synthetic.mixed import mix_resolutions


def make_scene_of(sizes):
    """Returns a scene of views of these (height, width). View 1 is held out."""
    rng = np.random.default_rng(0)
    num = len(sizes)
    Ks = np.array([[[0.8 * w, 0, 0.45 * w], [0, 0.9 * w, 0.55 * h], [0, 0, 1]] for h, w in sizes], np.float32)
    return Scene(
        names=tuple(f"{i}.png" for i in range(num)),
        images=tuple(rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes),
        viewmats=np.tile(np.eye(4, dtype=np.float32), (num, 1, 1)) * np.arange(1, num + 1)[:, None, None],
        Ks=Ks,
        train_ids=np.array([i for i in range(num) if i != 1]),
        test_ids=np.array([1]),
        points=np.zeros((0, 3), np.float32),
        point_colors=np.zeros((0, 3), np.float32),
    )


def test_only_training_views_at_full_scale():
    scene = make_scene_of([(12, 16)] * 3)
    dataset = make_dataset(scene, 1.0)
    assert dataset.images.dtype == np.uint8 and dataset.images.shape == (2, 12, 16, 3)
    np.testing.assert_array_equal(dataset.images[1], scene.images[2])
    np.testing.assert_array_equal(dataset.cameras.viewmat, scene.viewmats[[0, 2]])
    np.testing.assert_array_equal(dataset.cameras.K, scene.Ks[[0, 2]])


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_intrinsics_scale_with_the_image(scale):
    """The pixel position of a camera ray scales with the image, also for odd sizes: pixel edges scale, not centres."""
    scene = make_scene_of([(13, 22), (12, 16), (15, 17)])
    dataset = make_dataset(scene, scale)
    for row, i in enumerate(scene.train_ids):
        height, width = scene.images[i].shape[:2]
        small = scale_size(height, width, scale)
        np.testing.assert_array_equal(dataset.sizes[row], small)
        ray = np.array([0.2, -0.1, 1.0])
        here, there = scene.Ks[i] @ ray, np.asarray(dataset.cameras.K[row]) @ ray
        np.testing.assert_allclose(there[:2] / (small[1], small[0]), here[:2] / (width, height), rtol=1e-5)
        assert there[2] == 1


def test_areas_are_averaged():
    image = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    means = image.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    # 1.0: Pillow rounds to 8 bits once per direction.
    assert np.abs(resize(image, 0.5).astype(float) - means).max() <= 1.0


def test_smaller_images_are_padded_at_right_and_bottom():
    scene = make_scene_of([(12, 16), (12, 16), (10, 20)])
    dataset = make_dataset(scene, 1.0)
    assert dataset.images.shape == (2, 12, 20, 3)
    np.testing.assert_array_equal(dataset.images[0, :, :16], scene.images[0])
    np.testing.assert_array_equal(dataset.images[1, :10], scene.images[2])
    assert not dataset.images[0, :, 16:].any() and not dataset.images[1, 10:].any()


def test_no_side_becomes_0():
    assert scale_size(3, 5, 0.1) == (1, 1)


def test_mean_colour_survives_the_scales():
    scene = make_scene("none", width=32, height=24, num_train=2, num_test=1, num_points=10, seed=0)
    means = [make_dataset(scene, scale).images.mean(axis=(1, 2)) for scale in (1.0, 0.5, 0.25)]
    np.testing.assert_allclose(means[1], means[0], atol=1.0)
    np.testing.assert_allclose(means[2], means[0], atol=1.0)


def test_mixed_resolution_coarsens_training_views_only():
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8) for _ in range(6))
    poses, Ks = np.tile(np.eye(4), (6, 1, 1)), np.tile(np.eye(3), (6, 1, 1))
    names, none = tuple("abcdef"), np.zeros((0, 3))
    scene = Scene(names, images, poses, Ks, np.arange(1, 6), np.array([0]), none, none)
    mixed = mix_resolutions(scene, (1, 4), seed=0)
    same = [np.array_equal(a, b) for a, b in zip(images, mixed.images, strict=True)]
    assert same[0] and sum(same[1:]) == 3  # factors 1, 4, 1, 4, 1 in some order
    assert mixed.sharp_images is not None and all(a is b for a, b in zip(images, mixed.sharp_images, strict=True))
    coarse = mixed.images[1 + same[1:].index(False)].astype(float)
    assert np.abs(np.diff(coarse, axis=1)).mean() < 0.3 * np.abs(np.diff(images[0].astype(float), axis=1)).mean()
    assert mix_resolutions(scene, (), seed=0) is scene
    with pytest.raises(UserError, match="mixed_factors"):
        mix_resolutions(scene, (0,), seed=0)
