"""The methods of the suite `ablations`: the default with one thing changed.

Each says in words what is changed, changes the configuration, and may put another blur model in the place of the network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from bags_jax.job import MakeModel
from experiments.benchmarks.quality.blur_models import make_deformable_kernels, make_global_kernels

CASES = (
    "still_life-motion-hard",
    "still_life-defocus-hard",
    "still_life-mixed-hard",
)  # of the suite, where none are chosen


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The default with one thing changed."""

    words: str  # in tables
    change: Callable[[Any], None] | None = None  # of the configuration
    make_model: MakeModel | None = None  # None: the Blur Proposal Network


def _set(**values: Any) -> Callable[[Any], None]:
    """Sets settings; `__` stands for the dot of their names."""
    return lambda config: config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})


def _use_one_scale(config: Any) -> None:
    """One stage at full image scale, with the kernels of the last one."""
    last = {name: tuple(config.blur[name])[-1] for name in ("kernel_sizes", "strides")}
    config.stages.scales = config.stages.stops = (1.0,)
    for name, value in last.items():
        config.blur[name] = (value,)


def _set_kernels(side: int) -> Callable[[Any], None]:
    """Kernels of `side` px in the last stage, which reach as far in the scene in the others; none is larger than its image."""

    def change(config: Any) -> None:
        height, scales = min(config.synthetic.width, config.synthetic.height), tuple(config.stages.scales)
        reaches = [max(1, round(side // 2 * scale)) for scale in scales]
        limits = [(round(height * scale) - 1) // 2 for scale in scales]
        config.blur.kernel_sizes = tuple(2 * min(pair) + 1 for pair in zip(reaches, limits, strict=True))

    return change


ABLATIONS = {
    "no-mask": Ablation("without the mask", _set(blur__use_mask=False, loss__mask=0.0)),
    "no-rgbd": Ablation("network without render and depth", _set(blur__use_rgbd=False)),
    "no-position": Ablation("network without position code", _set(blur__use_position=False)),
    "no-embedding": Ablation(
        "network without view embedding: only the table is of the view", _set(blur__use_embedding=False)
    ),
    "no-table": Ablation("without the table, as the paper has it", _set(blur__use_table=False)),
    "no-view": Ablation(
        "without embedding and table: nothing is of the view", _set(blur__use_embedding=False, blur__use_table=False)
    ),
    "one-scale": Ablation("without coarse-to-fine: full image scale from the start", _use_one_scale),
    "full-trunk": Ablation("without growing layers: all stages on the whole trunk", _set(blur__growing_trunk=False)),
    "kernel-5": Ablation("kernels of 5 px", _set_kernels(5)),
    "kernel-17": Ablation("kernels of 17 px", _set_kernels(17)),
    "kernel-25": Ablation("kernels of 25 px", _set_kernels(25)),
    "points-100": Ablation("100 points", _set(synthetic__num_points=100)),
    "points-1000": Ablation("1000 points", _set(synthetic__num_points=1000)),
    "points-random": Ablation("1500 random points", _set(synthetic__num_points=0, init__num_random=1500)),
    "global-kernel": Ablation("one kernel and mask value a view", make_model=make_global_kernels),
    "deformable": Ablation("5 deformable points a pixel, no mask", make_model=make_deformable_kernels),
    "poses-kept": Ablation("poses of the capture kept", _set(optim__poses=0.0)),
}


def apply_ablation(config: Any, method: str) -> Any:
    """Changes a configuration to that of an ablation; other methods leave it as it is."""
    if (ablation := ABLATIONS.get(method)) and ablation.change:
        ablation.change(config)
    return config


def find_make_model(method: str) -> MakeModel | None:
    """The function that makes the blur model of a method; None: that of the settings."""
    return ABLATIONS[method].make_model if method in ABLATIONS else None
