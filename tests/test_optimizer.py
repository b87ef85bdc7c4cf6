"""Each group of parameters moves at its own rate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.errors import UserError
from bags_jax.scene.optimizer import make_optimizers, scale_rates
from bags_jax.settings import Optim
from bags_jax.structs import Gaussians

RATES = Optim(
    means=1e-2, means_final=1e-4, quats=1e-3, log_scales=5e-3, logit_opacities=5e-2, sh_dc=2.5e-3, sh_rest=1.25e-4,
    network=5e-4, network_final=5e-6, network_hold=0.5, table_gain=20.0, mask_gain=3.0,
)  # fmt: skip
MODEL = BlurProposalNetwork(num_views=2, kernel_sizes=(3, 5), width=4, embedding_width=2, use_rgbd=False)


def gaussians(value: float) -> Gaussians:
    shapes = (4, 3), (4, 4), (4, 3), (4,), (4, 1, 3), (4, 15, 3)
    return Gaussians(*(jnp.full(shape, value) for shape in shapes))


def first_move(optimizer: optax.GradientTransformation, params, steps: int = 1):
    state, updates = optimizer.init(params), params
    for _ in range(steps):
        updates, state = optimizer.update(params, state, params)
    return updates


def test_groups_of_gaussians():
    optimizers = make_optimizers(RATES, None, restart=0, num_steps=100)
    # Adam's first step is the rate, whatever the size of the gradient: eps is 1e-15.
    move = first_move(optimizers.gaussians, gaussians(1e-9))
    for field in dataclasses.fields(Gaussians):
        rate = getattr(RATES, field.name)
        np.testing.assert_allclose(getattr(move, field.name), -rate, rtol=1e-4, err_msg=field.name)


def test_rate_of_means_decays_and_restarts():
    optimizers = make_optimizers(RATES, None, restart=3, num_steps=6)
    rates = [-float(first_move(optimizers.gaussians, gaussians(1.0), steps).means[0, 0]) for steps in (1, 3, 4, 7)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2 * 0.01 ** (2 / 3), 1e-2, 1e-4], rtol=1e-3)


def test_groups_of_the_network():
    optimizers = make_optimizers(RATES, MODEL, restart=0, num_steps=100)
    gains = {"table_0": 20.0, "table_1": 20.0, "mask_heads_0": 3.0, "mask_heads_1": 3.0}
    gains |= {name: 1.0 for name in ("kernel_heads_0", "kernel_heads_1", "trunk_0", "trunk_1", "trunk_2", "embedding")}
    params = {"first": jax.tree.map(jnp.ones_like, jax.jit(MODEL.init_params)(jax.random.key(0)))}
    assert params["first"].keys() == gains.keys()
    move = first_move(optimizers.network, params)["first"]
    for name, gain in gains.items():
        expected = jax.tree.map(lambda x, gain=gain: jnp.full_like(x, -gain * RATES.network), params["first"][name])
        check = functools.partial(np.testing.assert_allclose, rtol=1e-4, err_msg=name)
        jax.tree.map(check, move[name], expected)
    assert jax.tree.structure(move) == jax.tree.structure(params["first"])


@dataclasses.dataclass(frozen=True)
class Misspelt:
    """A blur model with a rate group that does not exist."""

    def init_params(self, key):
        return {"kernels": jnp.zeros(3)}

    def field(self, params, view, rgbd, *, head):
        raise NotImplementedError

    def hand_over(self, params, *, source, target, zoom):
        return params

    def rate_groups(self, params):
        return {"kernels": "tabel"}


def test_unknown_rate_group_is_refused_in_one_line():
    optimizers = make_optimizers(RATES, Misspelt(), restart=0, num_steps=100)
    expected = r"Misspelt.rate_groups gives 'tabel', expected network, table or mask"
    with pytest.raises(UserError, match=expected) as caught:
        optimizers.network.init({"first": Misspelt().init_params(jax.random.key(0))})
    assert "\n" not in str(caught.value)


def test_rates_of_the_gaussians_belong_to_a_length():
    """A sixteenth of the steps: the means move 8 times as fast, all else twice; longer runs are not slowed down."""
    optim = Optim()
    for num_steps, means_gain, gain in ((1875, 8.0, 2.0), (30_000, 1.0, 1.0), (60_000, 1.0, 1.0)):
        rates = scale_rates(optim, num_steps)
        assert rates.means == pytest.approx(means_gain * optim.means)
        assert rates.means_final == pytest.approx(means_gain * optim.means_final)
        for name in ("quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest"):
            assert getattr(rates, name) == pytest.approx(gain * getattr(optim, name))
        assert rates.network == optim.network and rates.poses == optim.poses
    assert scale_rates(dataclasses.replace(optim, means_steps=0), 100) == dataclasses.replace(optim, means_steps=0)
