"""BAGS as its authors run it: their settings for each of their 29 scenes, and their blur model at the length of our runs.

published_scenes.csv has the settings of each scene. docs/method.md lists what stays different on purpose.
"""

import csv
import dataclasses
import pathlib
from typing import Any

from bags_jax.settings import STEPS, Loss, rule_of

TABLE = pathlib.Path(__file__).with_name("published_scenes.csv")
PAPER_LOSSES = (
    "ssim",
    "mask",
    "depth_tv_squared",
    "rgb_tv_squared",
)  # loss terms of the paper; every other term of ours is off


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
    """Changes a configuration to the blur model of the authors, at the same length and size: a baseline with another blur model.

    Theirs are the network, its depth and border, one kernel for each pixel, sRGB values, the weight of the mask, and the schedule
    of the blur model: none for 250 of 46 000 steps at the start, and again after the restart at full image scale. Steps, image
    scales, kernel sizes, the rates of the Gaussians and density control stay those of the configuration.

    Args:
      config: any configuration; it is changed.
      network_rate: constant; the authors' value for most scenes (docs/decisions has other rates).
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
    config.blur.linear_light = config.blur.margin = config.blur.clips_white = False
    config.optim.poses = config.optim.exposures = 0.0
    return config


def _published_blur(config: Any) -> None:
    """Settings that all published scenes share: network, depth, border, and the weight of the mask."""
    config = without_additions(config)
    blur = config.blur
    blur.enabled = blur.published_network = blur.ray_depth = blur.zero_border = True
    blur.hand_over = False
    blur.width, blur.conv_width, blur.feature_width, blur.embedding_width = 64, 64, 32, 32
    config.loss.mask = 1e-3


def as_published(config: Any, row: dict[str, str]) -> Any:
    """Changes a configuration to the settings of one published scene: network, schedule, losses, rates, density control."""
    total = int(row["iterations"])
    config.num_steps = total
    config.sh_every = 1000 / total
    _published_blur(config)
    _published_stages(config, row)
    blur = config.blur
    blur.strides = (1,) * len(blur.kernel_sizes)
    blur.warmup, blur.warmup_at_restart = 250 / total, True
    blur.use_rgbd = bool(int(row["use_rgbd"]))

    config.loss.depth_tv_squared, config.loss.rgb_tv_squared = float(row["depth_tv"]), float(row["rgb_tv"])
    optim = config.optim
    optim.means_final, optim.means_steps, optim.means_decay_steps = 1.6e-6, 0, 60_000
    optim.network = optim.network_final = float(row["network_lr"])

    density = config.density
    density.start, density.stop = 600 / total, min(1.0, 34_900 / total)
    density.grad_threshold, density.grad_threshold_early = 2e-4, float(row["densify_grad_multiscale"])
    density.min_opacity = float(row["min_opacity"])
    density.min_opacity_early = float(row["min_opacity_multiscale"] or row["min_opacity"])
    # Only scenes with this opacity prune by scale. By screen size none does: their radii are set to 0 before.
    density.max_scale, density.max_radius_after = 0.1 if density.min_opacity == 0.005 else 0.0, 3000 / total
    density.max_radius = 0.0
    density.reset_every = 3000 / total
    return config


def _published_stages(config: Any, row: dict[str, str]) -> None:
    """Image scales and kernel sizes. After the multi-scale phase the last head goes on, or a second network with one head."""
    total, early, final = (int(row[name]) for name in ("iterations", "multiscale_steps", "final_kernel"))
    stages, blur = config.stages, config.blur
    blur.second_network = bool(int(row["second_network"]))
    stages.restart, stages.restart_density = early / total, True
    starts, scales, kernels = [0, 3000, 6000], [0.25, 0.5, 1.0], [5, 9, 17]
    if blur.second_network:
        kept = sum(start < early for start in starts)
        starts, scales, kernels = [*starts[:kept], early], [*scales[:kept], 1.0], [*kernels[:kept], final]
    stages.scales, blur.kernel_sizes = tuple(scales), tuple(kernels)
    stages.stops = (*(start / total for start in starts[1:]), 1.0)
