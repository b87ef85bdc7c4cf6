"""The settings that the authors of BAGS published, as far as this project has them: a variant of ours.

Our network and schedule still differ from the authors' code in the ways that docs/method.md lists; that is worth up to 1.6 dB.
published_scenes.csv has the settings of each of their 29 scenes.
"""

import csv
import dataclasses
import pathlib
from typing import Any

from bags_jax.settings import STEPS, Loss, rule_of

TABLE = pathlib.Path(__file__).with_name("published_scenes.csv")
PAPER_LOSSES = ("ssim", "mask", "depth_tv", "rgb_tv")  # loss terms of the paper; every other term of ours is off


def scenes(dataset: str) -> dict[str, dict[str, str]]:
    """Rows of the datasets whose name starts with `dataset`, by scene."""
    with TABLE.open(newline="") as file:
        return {row["scene"]: row for row in csv.DictReader(file) if row["dataset"].startswith(dataset)}


def pick(dataset: str, name: str) -> dict[str, str]:
    """The row of one scene.

    Raises:
      ValueError: no such scene.
    """
    rows = scenes(dataset)
    if name not in rows:
        raise ValueError(f"scene {name!r} came, expected one of {', '.join(sorted(rows))}")
    return rows[name]


def at_equal_steps(config: Any, *, network_rate: float = 5e-4) -> Any:
    """Changes a configuration to the published blur model, at the same length and size: a baseline with another blur model.

    Published are the blur model (uniform kernels and a mask of one half at the start, one kernel for each pixel, no table, no
    hand-over, no bound, the authors' widths), its loss weight and rates, and its schedule: no blur model for 250 of 46 000 steps at
    the start, and again after the restart at full image scale. Steps, image scales, kernel sizes, the rates of the Gaussians and
    density control stay.

    Args:
      config: any configuration; it is changed.
      network_rate: constant; the authors' value for most scenes. A ten times larger rate closes the mask for good within 250 steps
        of such a short run, which then ends as plain splatting (docs/decisions).
    """
    _published_blur(config)
    config.blur.strides = (1,) * len(config.stages.scales)
    config.blur.second_network, config.blur.use_rgbd = False, True
    config.blur.warmup, config.blur.warmup_at_restart = 250 / 46_000, True
    config.stages.restart = config.stages.stops[-2] if len(config.stages.stops) > 1 else 0.0
    config.optim.network = config.optim.network_final = network_rate
    return config


def without_additions(config: Any) -> Any:
    """Switches off all that this project adds to the papers. The rates of the Gaussians stay: all methods share them."""
    for field in dataclasses.fields(Loss):
        if field.name not in PAPER_LOSSES and rule_of(field).unit != STEPS:
            config.loss[field.name] = 0.0
    config.blur.linear_light = config.blur.margin = False
    config.optim.poses = config.optim.exposures = 0.0
    return config


def _published_blur(config: Any) -> None:
    """Settings that all published scenes share: the blur model, the weight of its mask, one rate for all its parts."""
    config = without_additions(config)
    blur = config.blur
    blur.enabled = True
    blur.width, blur.conv_width, blur.feature_width, blur.embedding_width = 64, 64, 32, 32
    blur.use_table, blur.hand_over, blur.centre_logit, blur.mask_logit = False, False, 0.0, 0.0
    blur.logit_bound = 0.0
    config.loss.mask = 1e-3
    config.optim.mask_gain = 1.0


def as_published(config: Any, row: dict[str, str]) -> Any:
    """Changes a configuration to the settings of one published scene: network, schedule, losses, rates, density control."""
    total, early = int(row["iterations"]), int(row["multiscale_steps"])
    config.num_steps = total
    config.sh_every = 1000 / total
    config.stages.scales = (0.25, 0.5, 1.0, 1.0)
    config.stages.stops = (3000 / total, 6000 / total, early / total, 1.0) if early > 6000 else _short(total, early)
    config.stages.restart = early / total
    if early <= 6000:
        config.stages.scales = (0.25, 0.5, 1.0)

    blur = config.blur
    final = int(row["final_kernel"])
    blur.kernel_sizes = (5, 9, 17, final) if early > 6000 else (5, 9, final)
    blur.strides = (1,) * len(blur.kernel_sizes)
    blur.warmup, blur.warmup_at_restart = 250 / total, True
    blur.second_network = bool(int(row["second_network"]))
    blur.use_rgbd = bool(int(row["use_rgbd"]))
    _published_blur(config)

    config.loss.depth_tv, config.loss.rgb_tv = float(row["depth_tv"]), float(row["rgb_tv"])
    optim = config.optim
    optim.means_final, optim.means_steps = 1.6e-6, 0
    optim.network = optim.network_final = float(row["network_lr"])

    density = config.density
    density.start, density.stop = 500 / total, min(1.0, 35_000 / total)
    density.grad_threshold, density.grad_threshold_early = 2e-4, float(row["densify_grad_multiscale"])
    density.min_opacity = float(row["min_opacity"])
    density.min_opacity_early = float(row["min_opacity_multiscale"] or row["min_opacity"])
    density.max_radius, density.max_radius_after = 20 / 600, 3000 / total
    density.reset_every = 3000 / total
    return config


def _short(total: int, early: int) -> tuple[float, ...]:
    """Ends of three stages, for scenes whose multi-scale phase ends at the half scale."""
    return (3000 / total, early / total, 1.0)
