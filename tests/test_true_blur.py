"""The true blur maps of embedded photographs, against paths and circles that are worked out another way."""

import math

import numpy as np
import pytest

from bags_jax.data.scene import train_on_sharp
from bags_jax.synthetic import exposures, mixed, raycast, still_life, true_blur
from bags_jax.synthetic.procedural import make_scene

SMALL = {"width": 32, "height": 24, "num_train": 3, "num_test": 1, "num_points": 10}
SIZE = {"height": 24, "width": 32}


def make_view():
    scene = make_scene("none", **SMALL)
    world, viewmat, K = still_life.LAYOUT.make_world(), scene.viewmats[2], scene.Ks[2]
    return world, viewmat, K, raycast.render_frame(world, viewmat, K, **SIZE)[1]


@pytest.mark.parametrize("layout_blur", [("still_life", "motion"), ("corner", "defocus"), ("relief", "mixed")])
def test_every_view_has_a_map(layout_blur):
    layout, blur = layout_blur
    scene = make_scene(blur, layout=layout, **SMALL)
    assert [x.shape for x in scene.blur_px] == [(24, 32)] * 4
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in scene.blur_px)
    assert not scene.blur_px[0].any()  # the held-out view is sharp
    assert max(x.max() for x in scene.blur_px) > 0.2
    assert not any(x.any() for x in train_on_sharp(scene).blur_px)


def test_a_sideways_path_has_the_width_of_a_line():
    """A camera that moves by d sideways moves a point at depth z by d f / z; a line of length l has the RMS width l / sqrt(12)."""
    _, viewmat, K, depths = make_view()
    shake = np.zeros((3, 6))
    shake[0, 0] = 0.05
    lengths = 0.05 * K[0, 0] / depths
    found = true_blur.of_shake(depths, viewmat, K, shake)
    np.testing.assert_allclose(found, lengths / math.sqrt(12), rtol=0.07)  # 17 poses instead of a line: 6 % more


def test_a_lens_has_the_width_of_the_disc_that_it_draws():
    """The screen positions of one point, seen from many points of the lens, spread as the map says."""
    _, _, K, depths = make_view()
    focus, aperture, focal = 1.5, 0.1, float(K[0, 0])
    lens = aperture / 2 * exposures._spread_lens_points(500)
    found = true_blur.of_lens(depths, focus, aperture, focal)
    for depth, width in zip(depths[::6, 5], found[::6, 5], strict=True):
        places = -focal * lens / depth + focal * lens / focus  # moved by the lens, then shifted so that `focus` stays
        assert math.sqrt(places.var(axis=0).sum()) == pytest.approx(width, rel=0.01)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_resolution_has_the_width_of_a_square(factor):
    line = np.arange(factor) - (factor - 1) / 2
    assert true_blur.of_resolution(factor, 2, 3)[1, 2] == pytest.approx(math.sqrt(2 * (line**2).mean()))


def test_mixing_resolutions_says_how_blurred_each_view_is():
    scene = mixed.mix_resolutions(make_scene("none", **SMALL), (1, 4, 4), seed=0)
    means = sorted(float(x.mean()) for x in scene.blur_px)
    assert means == pytest.approx([0.0, 0.0, math.sqrt(2.5), math.sqrt(2.5)])
