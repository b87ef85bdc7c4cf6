"""Each group of parameters moves at its own rate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bags_jax.scene.optimizer import Rates, make_optimizers
from bags_jax.structs import Gaussians

RATES = Rates(
    means=1e-2, means_final=1e-4, quats=1e-3, log_scales=5e-3, logit_opacities=5e-2, sh_dc=2.5e-3, sh_rest=1.25e-4,
    network=5e-4, network_final=5e-6, network_hold=0.5, table_gain=20.0, mask_gain=3.0,
)  # fmt: skip


def gaussians(value: float) -> Gaussians:
    shapes = (4, 3), (4, 4), (4, 3), (4,), (4, 1, 3), (4, 15, 3)
    return Gaussians(*(jnp.full(shape, value) for shape in shapes))


def first_move(optimizer: optax.GradientTransformation, params, steps: int = 1):
    state, updates = optimizer.init(params), params
    for _ in range(steps):
        updates, state = optimizer.update(params, state, params)
    return updates


def test_groups_of_gaussians():
    optimizers = make_optimizers(RATES, restart=0, num_steps=100)
    # Adam's first step is the rate, whatever the size of the gradient: eps is 1e-15.
    move = first_move(optimizers.gaussians, gaussians(1e-9))
    for field in dataclasses.fields(Gaussians):
        rate = getattr(RATES, field.name)
        np.testing.assert_allclose(getattr(move, field.name), -rate, rtol=1e-4, err_msg=field.name)


def test_rate_of_means_decays_and_restarts():
    optimizers = make_optimizers(RATES, restart=3, num_steps=6)
    rates = [-float(first_move(optimizers.gaussians, gaussians(1.0), steps).means[0, 0]) for steps in (1, 3, 4, 7)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2 * 0.01 ** (2 / 3), 1e-2, 1e-4], rtol=1e-3)


def test_groups_of_the_network():
    optimizers = make_optimizers(RATES, restart=0, num_steps=100)
    names = {"table_0": 20.0, "mask_heads_0": 3.0, "kernel_heads_0": 1.0, "trunk_1": 1.0, "embedding": 1.0}
    params = {"network": {name: {"kernel": jnp.ones((2, 2))} for name in names}}
    move = first_move(optimizers.network, params)["network"]
    for name, gain in names.items():
        np.testing.assert_allclose(move[name]["kernel"], -gain * RATES.network, rtol=1e-4, err_msg=name)
    assert jax.tree.structure(move) == jax.tree.structure(params["network"])
