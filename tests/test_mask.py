"""The mask never closes: at every scale of a training run, the blur model keeps its say over blurry views."""

import importlib
import json
import math

from configs import base, procedural

# bags_jax.train is the function of that name.
train = importlib.import_module("bags_jax.train").train


def mean_masks(config, workdir) -> dict[float, list[float]]:
    """Mean mask of the training views by image scale, as training goes on."""
    train(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {scale: [r["train/mask"] for r in rows if r["image_scale"] == scale] for scale in config.stages.scales}


def make_config(scales: tuple[float, ...], logit_bound: float):
    """The embedded scene with camera motion, small, with a blur model from the first step on.

    Its mask is pulled towards 0 a thousand times harder than by default, and at the full rate of the network: this does in a hundred
    steps what bad luck does in a thousand.
    """
    config = procedural.get_config("motion,smoke")
    config.data.width, config.data.height, config.data.num_train, config.data.num_points = 64, 42, 8, 500
    config.num_steps, config.max_gaussians = 140 * len(scales), 1000
    config.stages.scales = scales
    config.stages.stops = tuple((i + 1) / len(scales) for i in range(len(scales)))
    config.blur.kernel_sizes, config.blur.strides = (3,) * len(scales), (1,) * len(scales)
    config.blur.warmup, config.blur.logit_bound = 0.0, logit_bound
    config.density.every, config.log_every, config.checkpoint_every = 70, 20, config.num_steps
    config.loss.mask, config.optim.mask_gain = 0.1, 1.0
    return config


def test_mask_stays_open_at_every_scale(tmp_path):
    bound = base.get_config().blur.logit_bound
    for scale, values in mean_masks(make_config((0.25, 0.5, 1.0), bound), tmp_path).items():
        assert len(values) >= 6
        # Logits stay within the bound, so that a mask can be no smaller than this, and a gradient leads back from there.
        assert min(values) > 0.9 / (1.0 + math.exp(bound)), (scale, values)


def test_without_the_bound_it_closes(tmp_path):
    """What the test above is there for: without the bound, as published, the mask goes on falling under the same pull."""
    (values,) = mean_masks(make_config((1.0,), 0.0), tmp_path).values()
    # Below what the bound would allow (the limit of the test above), and still falling.
    assert values[-1] < 0.9 / (1.0 + math.exp(base.get_config().blur.logit_bound)), values
    assert values[-1] == min(values), values
