"""Pictures of a small scene: what the margin of a view adds, and that it takes nothing away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork, init_network
from bags_jax.rendering import View, render, render_blurred
from bags_jax.structs import Camera, Gaussians
from tests.splats import HEIGHT, WIDTH, make_splats

ROOM, BACKGROUND = 4096, (0.2, 0.4, 0.6)


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
    return render(*scene, view=View(WIDTH, HEIGHT, ROOM, BACKGROUND, margin))


def test_a_margin_is_drawn_around_the_same_picture(scene):
    alone, wide = draw(scene, 0), draw(scene, 5)
    assert wide.image.shape == (HEIGHT + 10, WIDTH + 10, 3) and wide.num_dropped == 0
    inside = wide.inside()
    assert inside.margin == 0 and inside.image.shape == alone.image.shape
    # Means that lie 5 px further on round differently in float32, and a steep edge makes ten times as much of it.
    for ours, expected in ((inside.image, alone.image), (inside.depth, alone.depth), (inside.alpha, alone.alpha)):
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert float(jnp.ptp(wide.image[:5])) > 0.1, "nothing was drawn in the margin"


def test_blur_draws_on_the_margin(scene):
    """Uniform kernels: each pixel of the photograph is the mean over its neighbours, those outside of it included."""
    network = BlurProposalNetwork(
        num_views=1, kernel_sizes=(5,), width=4, embedding_width=2, use_rgbd=False, centre_logit=0.0, mask_logit=30.0,
        logit_bound=0.0, linear_light=False,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, init_network(network, jax.random.key(0)))
    params["kernel_heads_0"] = jax.tree.map(jnp.zeros_like, params["kernel_heads_0"])
    wide = draw(scene, 2)
    blurred, moments = render_blurred(network, params, jnp.int32(0), wide, head=0)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(wide.image), (5, 5), axis=(0, 1))
    assert blurred.shape == (HEIGHT, WIDTH, 3) and moments.mask.shape == (HEIGHT, WIDTH)
    np.testing.assert_allclose(blurred, windows.mean(axis=(-2, -1)), atol=1e-4)
    without = render_blurred(network, params, jnp.int32(0), draw(scene, 0), head=0)[0]
    np.testing.assert_allclose(without[2:-2, 2:-2], blurred[2:-2, 2:-2], atol=1e-4)
    assert float(jnp.max(jnp.abs(without - blurred))) > 0.01, "the border looks as if it went on with its last pixel"
