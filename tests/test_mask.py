"""The blur mask never closes for good: at every image scale, the blur model can still blur the views."""

import json
import math

import jax
import jax.numpy as jnp
import optax
import pytest

from bags_jax.config import default_config, read_config
from bags_jax.job import make_blur_model
from bags_jax.ops.blur import blur
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.training import train
from configs import procedural


def mean_masks(config, workdir) -> dict[float, list[float]]:
    """Trains, and returns the logged mean masks of the training views, by image scale."""
    train(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {scale: [r["train/mask"] for r in rows if r["image_scale"] == scale] for scale in config.stages.scales}


def make_config(scales: tuple[float, ...], logit_bound: float, num_steps: int):
    """A small embedded scene with motion blur, and a blur model from the first step on.

    The mask loss weighs a thousand times its default, at the network's full learning rate: 100 steps then have the
    effect of 1000 unlucky steps by default.
    """
    config = procedural.get_config("motion,smoke")
    scene = config.synthetic
    scene.width, scene.height, scene.num_train, scene.num_points = 64, 42, 8, 500
    config.num_steps, config.max_gaussians = num_steps, 1000
    config.stages.scales = scales
    config.stages.stops = tuple((i + 1) / len(scales) for i in range(len(scales)))
    config.blur.kernel_sizes, config.blur.strides = (3,) * len(scales), (1,) * len(scales)
    config.blur.warmup, config.blur.logit_bound = 0.0, logit_bound
    config.density.every, config.log_every, config.checkpoint_every = 70, 20, config.num_steps
    config.loss.mask, config.optim.mask_gain = 0.1, 1.0
    return config


@pytest.mark.slow
def test_mask_stays_open_at_every_scale(tmp_path):
    bound = default_config().blur.logit_bound
    for scale, values in mean_masks(make_config((0.5, 1.0), bound, 420), tmp_path).items():
        assert len(values) >= 6
        # Twice the value that the bound alone guarantees (measured: 8 times). The mask loss does not train the
        # features, so the logit falls slowly.
        assert min(values) > 2.0 / (1.0 + math.exp(bound)), (scale, values)


@pytest.mark.slow
def test_without_the_bound_the_mask_closes(tmp_path):
    """Control of the test above: without the bound, as published, the same mask loss keeps closing the mask."""
    (values,) = mean_masks(make_config((1.0,), 0.0, 140), tmp_path).values()
    # Below the bound's limit, and still falling.
    assert values[-1] < 0.9 / (1.0 + math.exp(default_config().blur.logit_bound)), values
    assert values[-1] == min(values), values


def test_a_closed_mask_opens_where_there_is_blur():
    """The network alone learns the blur of a photograph, starting from a mask that is closed far beyond the bound."""
    config = procedural.get_config("motion,smoke")
    config.num_steps = 150
    config.blur.use_rgbd = False  # compiles faster
    config.optim.network, config.optim.mask_gain = 0.05, 1.0  # ten times the rate: the default needs 1500 steps
    settings = read_config(config)
    model = make_blur_model(settings, num_views=1)
    optimizer = make_optimizers(settings.optim, model, restart=0, num_steps=config.num_steps).network
    params = jax.jit(model.init_params)(jax.random.key(0))
    params["mask_heads_0"] = {**params["mask_heads_0"], "bias": jnp.array([-config.blur.logit_bound - 3.0])}
    rgbd = jax.random.uniform(jax.random.key(1), (12, 16, 4))
    sharp = rgbd[..., :3]
    photo = (jnp.roll(sharp, 1, axis=1) + sharp + jnp.roll(sharp, -1, axis=1)) / 3.0

    def loss(params):
        field = model.field(params["first"], jnp.int32(0), rgbd, head=0)
        mask = jnp.mean(field.mask)
        return jnp.mean(jnp.abs(blur(sharp, field)[0] - photo)) + config.loss.mask * mask, mask

    def step(carry, _):
        params, state = carry
        gradients, mask = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), mask

    @jax.jit
    def masks(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=config.num_steps)[1]

    values = masks({"first": params})
    assert values[0] < 0.01 and values[-1] > 0.5, values
