"""Renders of a small scene: the margin adds pixels around the same image, and blur carries light in from there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.blur_model.published_network import PublishedNetwork
from bags_jax.rendering import View, normalize_depth, render, render_blurred
from bags_jax.schedule import Stage
from bags_jax.structs import Camera, Gaussians
from tests.splats import HEIGHT, WIDTH, make_splats

BUFFER, BACKGROUND = 4096, (0.2, 0.4, 0.6)


@pytest.fixture(scope="module")
def scene():
    """Gaussians before activation, all alive, and a camera whose principal point is off the centre."""
    splats = make_splats("typical")
    num = splats.means.shape[0]
    opacities = jnp.clip(splats.opacities, 0.05, 0.95)
    gaussians = Gaussians(
        means=splats.means,
        quats=splats.quats,
        log_scales=jnp.log(splats.scales),
        logit_opacities=jnp.log(opacities / (1 - opacities)),
        sh_dc=splats.colors[:, None],
        sh_rest=jnp.zeros((num, 0, 3)),
    )
    return gaussians, jnp.ones(num, bool), jnp.zeros(num), Camera(splats.viewmats[0], splats.Ks[0])


def draw(scene, margin):
    return render(*scene, view=View(WIDTH, HEIGHT, BUFFER, BACKGROUND, margin))


def test_margin_is_rendered_around_the_same_image(scene):
    alone, wide = draw(scene, 0), draw(scene, 5)
    assert wide.image.shape == (HEIGHT + 10, WIDTH + 10, 3) and wide.num_dropped == 0
    inside = wide.crop_margin()
    assert inside.margin == 0 and inside.image.shape == alone.image.shape
    # Means that lie 5 px further right and down round differently in float32; a steep edge enlarges that tenfold.
    for ours, expected in ((inside.image, alone.image), (inside.depth, alone.depth), (inside.alpha, alone.alpha)):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert float(jnp.ptp(wide.image[:5])) > 0.1, "nothing is rendered in the margin"


def test_blur_takes_light_from_the_margin(scene):
    """Uniform kernels: each pixel of the photograph is the mean over its neighbours, also over those outside the photograph."""
    network = BlurProposalNetwork(
        num_views=1, kernel_sizes=(5,), width=4, embedding_width=2, use_rgbd=False, centre_logit=0.0, mask_logit=30.0,
        logit_bound=0.0,
    )  # fmt: skip
    stage = Stage(start=0, stop=1, scale=1.0, kernel_size=5, head=0, margin=2, linear_light=False)
    params = network.init_params(jax.random.key(0))
    params["kernel_heads_0"] = jax.tree.map(jnp.zeros_like, params["kernel_heads_0"])
    wide = draw(scene, 2)
    blurred, moments = render_blurred(network, params, jnp.int32(0), wide, stage=stage)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(wide.image), (5, 5), axis=(0, 1))
    assert blurred.shape == (HEIGHT, WIDTH, 3) and moments.mask.shape == (HEIGHT, WIDTH)
    np.testing.assert_allclose(blurred, windows.mean(axis=(-2, -1)), atol=1e-4)
    without = render_blurred(network, params, jnp.int32(0), draw(scene, 0), stage=stage)[0]
    np.testing.assert_allclose(without[2:-2, 2:-2], blurred[2:-2, 2:-2], atol=1e-4)
    assert float(jnp.max(jnp.abs(without - blurred))) > 0.01, "without a margin the last pixel should be repeated"


def test_zeros_come_from_beyond_the_border(scene):
    """A uniform kernel of 5 x 5 at the first pixel: 9 of its 25 taps are in the render, the others are 0."""
    network = PublishedNetwork(num_views=1, kernel_sizes=(5,), layers=(1,), width=4, embedding_width=2, use_rgbd=False)
    stage = Stage(0, 1, scale=1.0, kernel_size=5, head=0, linear_light=False, zero_border=True)
    params = jax.tree.map(jnp.zeros_like, network.init_params(jax.random.key(0)))  # uniform kernels, mask 0.5
    sharp = draw(scene, 0)
    blurred, _ = render_blurred(network, params, jnp.int32(0), sharp, stage=stage)
    image = np.asarray(sharp.image)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    means = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1)).mean(axis=(-2, -1))
    np.testing.assert_allclose(blurred, 0.5 * (image + means), atol=1e-5)
    np.testing.assert_allclose(means[0, 0], image[:3, :3].sum(axis=(0, 1)) / 25, atol=1e-6)
    repeated = render_blurred(network, params, jnp.int32(0), sharp, stage=dataclasses.replace(stage, zero_border=False))
    assert float(jnp.max(jnp.abs(repeated[0] - blurred))) > 0.05


def test_depth_may_be_the_distance_along_the_ray(scene):
    """One Gaussian, far off the axis: its distance from the camera is larger than its camera z."""
    gaussians, alive, filter_3d, camera = scene
    flat = draw(scene, 0)
    inside = np.asarray((flat.projected.radii_px[:, 0] > 0) & (flat.projected.opacities > 0.2))
    means = np.asarray(gaussians.means) @ np.asarray(camera.viewmat[:3, :3]).T + np.asarray(camera.viewmat[:3, 3])
    distances = np.linalg.norm(means, axis=-1)
    means_px = np.asarray(flat.projected.means_px)
    on_screen = np.all((means_px > 0) & (means_px < [WIDTH, HEIGHT]), axis=-1)
    slant = np.where(inside & on_screen, distances / means[:, 2], 1.0)
    one = int(np.argmax(slant))
    assert slant[one] > 1.02
    only = jnp.arange(alive.shape[0]) == one
    view = View(WIDTH, HEIGHT, BUFFER, BACKGROUND)
    z, ray = (
        render(gaussians, only, filter_3d, camera, view=dataclasses.replace(view, ray_depth=ray_depth))
        for ray_depth in (False, True)
    )
    solid = np.asarray(z.alpha) > 0.01
    assert solid.any()
    np.testing.assert_allclose((ray.depth / ray.alpha)[solid], distances[one], rtol=1e-4)
    np.testing.assert_allclose((z.depth / z.alpha)[solid], means[one, 2], rtol=1e-4)
    np.testing.assert_array_equal(ray.image, z.image)


def test_depth_spans_the_unit_interval():
    depth = normalize_depth(jnp.array([[2.0, 3.0], [6.0, 4.0]]))
    np.testing.assert_allclose(depth, [[0, 0.25], [1, 0.5]])
    assert np.isfinite(normalize_depth(jnp.full((2, 2), 3.0))).all()
