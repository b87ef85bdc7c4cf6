"""The mask never closes: at every scale of a training run, the blur model keeps its say over blurry views."""

import importlib
import json

import pytest

from configs import procedural

# bags_jax.train is the function of that name.
train = importlib.import_module("bags_jax.train").train

SCALES = (0.25, 0.5, 1.0)


def mean_masks(config, workdir) -> dict[float, list[float]]:
    """Mean mask of the training views by image scale, as training goes on."""
    train(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {s: [r["train/mask"] for r in rows if r["image_scale"] == s and "train/mask" in r] for s in SCALES}


def make_config():
    """The embedded scene with camera motion, small, through all three scales; a strong pull on the mask to close."""
    config = procedural.get_config("motion,smoke")
    config.data.width, config.data.height, config.data.num_train, config.data.num_points = 64, 42, 8, 500
    config.num_steps, config.max_gaussians = 420, 1500
    config.stages.scales, config.stages.stops = SCALES, (0.3, 0.6, 1.0)
    config.blur.kernel_sizes, config.blur.strides, config.blur.warmup = (3, 3, 5), (1, 1, 2), 0.05
    config.density.every, config.log_every, config.checkpoint_every = 60, 20, 420
    config.loss.mask = 0.1  # a thousand times the default
    config.optim.mask_gain = 1.0
    return config


def test_mask_stays_open_at_every_scale(tmp_path):
    masks = mean_masks(make_config(), tmp_path)
    for scale, values in masks.items():
        assert len(values) >= 4
        # Logits of +-5: sigmoid(-5) = 0.0067 is the least that a mask can be, and from there it comes back.
        assert min(values) > 0.006, (scale, values)


@pytest.mark.parametrize("pull", [1e-4])
def test_default_mask_stays_wide_open(tmp_path, pull):
    config = make_config()
    config.loss.mask, config.optim.mask_gain = pull, 0.1
    for scale, values in mean_masks(config, tmp_path).items():
        assert min(values) > 0.5, (scale, values)


def test_without_the_bound_the_mask_collapses(tmp_path):
    """What the tests above are there for: the published mask falls to 0 under the same pull, and stays there."""
    config = make_config()
    config.blur.logit_bound = 0.0
    masks = mean_masks(config, tmp_path)
    assert min(masks[1.0]) < 0.001, masks
