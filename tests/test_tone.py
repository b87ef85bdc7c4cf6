"""Tone curves: that of sRGB, the family with an exponent, and an exponent that is learned from how edges are blurred."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.config import read_config
from bags_jax.job import make_blur_model
from bags_jax.rendering import apply_blur, blur_gamma
from bags_jax.schedule import Stage
from bags_jax.structs import BlurField
from bags_jax.tone import GAMMA, TOE_SRGB, decode_gamma, encode_gamma, srgb_to_linear
from configs import procedural
from tests.test_rendering import HEIGHT, WIDTH, draw, scene  # noqa: F401  the fixture

VALUES = jnp.concatenate([jnp.linspace(-0.5, 1.5, 401), jnp.array([0.0, TOE_SRGB, 1.0])])
STAGE = Stage(start=0, stop=1, scale=1.0, kernel_size=5, head=0)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.4, 3.0])
def test_encoded_is_what_was_decoded(gamma):
    powers = decode_gamma(VALUES, gamma)
    assert np.all(np.diff(powers[:401]) > 0)
    np.testing.assert_allclose(encode_gamma(powers, gamma), VALUES, atol=2e-5)
    np.testing.assert_allclose(decode_gamma(jnp.ones(()), gamma), 1.0, rtol=1e-6)


def test_ends_of_the_family():
    np.testing.assert_allclose(decode_gamma(VALUES[VALUES >= 0], GAMMA), srgb_to_linear(VALUES[VALUES >= 0]), atol=6e-5)
    np.testing.assert_allclose(decode_gamma(VALUES, 1.0), (VALUES + 0.055) / 1.055, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 2.4])
def test_gradients_are_finite_and_those_of_differences(gamma):
    def roundabout(values, gamma):
        return jnp.sum(jnp.sin(3.0 * encode_gamma(0.7 * decode_gamma(values, gamma) + 0.2, gamma)))

    bright = VALUES[(VALUES > 0.2) & (VALUES < 1.2)]
    d_values, d_gamma = jax.grad(roundabout, argnums=(0, 1))(bright, gamma)
    assert np.isfinite(d_values).all()
    step = 1e-2
    expected = (roundabout(bright, gamma + step) - roundabout(bright, gamma - step)) / (2 * step)
    np.testing.assert_allclose(d_gamma, expected, rtol=2e-2)
    assert np.isfinite(jax.grad(lambda v: jnp.sum(encode_gamma(decode_gamma(v, gamma), gamma)))(VALUES)).all()


def uniform_field(gamma=None) -> BlurField:
    """The mean of 5 x 5 px, everywhere."""
    zeros = jnp.zeros((HEIGHT, WIDTH, 1)), jnp.zeros((1, 25)), jnp.zeros(25)
    return BlurField(*zeros, mask=jnp.ones((HEIGHT, WIDTH)), gamma=gamma)


def test_blur_adds_up_the_power_that_the_field_says(scene):  # noqa: F811
    sharp = draw(scene, 0)
    light, of_light = (apply_blur(uniform_field(g), sharp, stage=STAGE)[0] for g in (None, jnp.float32(GAMMA)))
    np.testing.assert_allclose(of_light, light, atol=2e-3)
    values = apply_blur(uniform_field(), sharp, stage=Stage(0, 1, 1.0, 5, head=0, linear_light=False))[0]
    of_values = apply_blur(uniform_field(jnp.float32(1.0)), sharp, stage=STAGE)[0]
    np.testing.assert_allclose(of_values, values, atol=1e-5)
    assert np.abs(light - values).max() > 0.01, "the two blurs are alike: the test shows nothing"


def test_gamma_of_the_blur():
    of_values = Stage(0, 1, 1.0, 5, head=0, linear_light=False)
    assert blur_gamma(uniform_field(), STAGE) == np.float32(GAMMA) and blur_gamma(uniform_field(), of_values) == 1.0
    assert blur_gamma(uniform_field(jnp.float32(1.5)), STAGE) == 1.5


@pytest.mark.parametrize("truth", [1.0, GAMMA])
def test_gamma_is_found(scene, truth):  # noqa: F811
    """Adam on the exponent alone: kernels and scene are known, the photograph was blurred by this power."""
    sharp = draw(scene, 0)
    photo = apply_blur(uniform_field(jnp.float32(truth)), sharp, stage=STAGE)[0]

    @jax.jit
    def slope(log_gamma):
        def loss(log_gamma):
            return jnp.mean(jnp.abs(apply_blur(uniform_field(jnp.exp(log_gamma)), sharp, stage=STAGE)[0] - photo))

        return jax.grad(loss)(log_gamma)

    log_gamma = jnp.log(1.6)
    for i in range(100):
        log_gamma -= 0.05 * 0.95**i * jnp.sign(slope(log_gamma))
    np.testing.assert_allclose(jnp.exp(log_gamma), truth, rtol=0.05)


def test_only_a_network_that_learns_it_has_an_exponent():
    small = {"num_views": 2, "kernel_sizes": (3, 5), "width": 4, "embedding_width": 2}
    params = BlurProposalNetwork(**small, learn_gamma=True).init_params(jax.random.key(0))
    np.testing.assert_allclose(params["log_gamma"], np.log(2.4), rtol=1e-6)
    assert BlurProposalNetwork(**small, learn_gamma=True).rate_groups(params)["log_gamma"] == "table"
    assert "log_gamma" not in BlurProposalNetwork(**small).init_params(jax.random.key(0))


@pytest.mark.parametrize(
    "words, changes, learns",
    [("motion", {}, True), ("motion", {"linear_light": False}, False), ("motion,published", {}, False)],
)
def test_settings(words, changes, learns):
    config = procedural.get_config(words)
    config.blur.update(changes)
    model = make_blur_model(read_config(config), num_views=2)
    assert getattr(model, "learn_gamma", False) == learns
