"""BAGS as published: the authors' settings for each of their 29 scenes (published_scenes.csv), and their blur model
with its training recipe at the length and size of any other configuration."""

import csv
import pathlib
from typing import Any

TABLE = pathlib.Path(__file__).with_name("published_scenes.csv")


def scenes(dataset: str) -> dict[str, dict[str, str]]:
    """The rows of the datasets whose name starts with `dataset`, by scene."""
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
    """BAGS as published, at the length and size of this configuration: a baseline that differs in the blur model alone.

    Published are the blur model (uniform kernels and half a mask to start with, one kernel a pixel, no table, no
    hand-over, no bound, their widths), its loss weight and rates, and its recipe: 250 of 46 000 steps without it at the
    start, and as many again where the schedules start anew, at the full image scale. Everything else (steps, image
    scales and when they change, kernel sizes, the Gaussians' rates, density control) stays as it came.

    Args:
      config: any configuration; it is changed.
      network_rate: constant; the authors' for most scenes. Ten times as much, for so short a run, closes the mask for good
        within 250 steps and ends as plain splatting (experiments/LOG.md).
    """
    _published_blur(config)
    config.blur.strides = (1,) * len(config.stages.scales)
    config.blur.second_network, config.blur.use_rgbd = False, True
    config.blur.warmup, config.blur.warmup_at_restart = 250 / 46_000, True
    config.stages.restart = config.stages.stops[-2] if len(config.stages.stops) > 1 else 0.0
    config.optim.network = config.optim.network_final = network_rate
    return config


def without_additions(config: Any) -> Any:
    """What this project adds to the papers, switched off. The rates of the Gaussians stay: they are the same for all methods."""
    config.loss.centroid = config.loss.confidence = config.loss.poses = 0.0
    config.loss.width_tv = config.loss.sharp = 0.0
    config.blur.linear_light = config.blur.margin = False
    config.optim.poses = 0.0
    return config


def _published_blur(config: Any) -> None:
    """What all their scenes share: shape and start of the blur model, its weight in the loss, one rate for all its parts."""
    config = without_additions(config)
    blur = config.blur
    blur.enabled = True
    blur.width, blur.conv_width, blur.feature_width, blur.embedding_width = 64, 64, 32, 32
    blur.use_table, blur.hand_over, blur.centre_logit, blur.mask_logit = False, False, 0.0, 0.0
    blur.logit_bound = 0.0
    config.loss.mask = 1e-3
    config.optim.mask_gain = 1.0


def as_published(config: Any, row: dict[str, str]) -> Any:
    """BAGS as its authors trained one scene: network, schedule, losses, rates and density control."""
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
    """Where the multi-scale phase ends with the half scale, the last stage is the single-scale phase itself."""
    return (3000 / total, early / total, 1.0)
