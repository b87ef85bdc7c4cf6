"""From a configuration to what the training loop needs: checked, derived, and free of config objects below."""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
from typing import Any

import jax

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.data import load_scene
from bags_jax.data.scene import Scene, train_on_sharp
from bags_jax.errors import UserError
from bags_jax.rendering import View
from bags_jax.scene.density import DensityRules
from bags_jax.scene.optimizer import Rates
from bags_jax.schedule import Stage
from bags_jax.step import Objective
from bags_jax.synthetic import make_scene
from bags_jax.synthetic.mixed import mix_resolutions

Config = Any  # an ml_collections.ConfigDict, whose fields no type checker can know


@dataclasses.dataclass(frozen=True)
class DensityPlan:
    """When density control has its turn, and by which rules."""

    every: int
    start: int
    stop: int
    late_from: int  # step from which grad_threshold holds instead of grad_threshold_early
    grad_threshold: float
    grad_threshold_early: float
    min_opacity_early: float
    max_radius_after: int
    reset_every: int
    rules: DensityRules

    def is_due(self, step: int) -> bool:
        """Whether Gaussians are cloned, split and pruned after this many steps."""
        return step % self.every == 0 and self.start <= step <= self.stop

    def resets_opacity(self, step: int) -> bool:
        """Whether opacities are reset after this many steps."""
        return bool(self.reset_every) and step % self.reset_every == 0 and self.start <= step < self.stop

    def threshold(self, step: int) -> float:
        """Screen gradient over which a Gaussian is cloned or split, NDC."""
        return self.grad_threshold if step >= self.late_from else self.grad_threshold_early

    def rules_at(self, step: int) -> DensityRules:
        """The rules of one turn: opacity has an early threshold too, and the largest radius holds only after some steps."""
        min_opacity = self.rules.min_opacity if step >= self.late_from else self.min_opacity_early
        max_radius = self.rules.max_radius if step > self.max_radius_after else 0.0
        return dataclasses.replace(self.rules, min_opacity=min_opacity, max_radius=max_radius)


def steps_of(value: float, num_steps: int) -> int:
    """A value of a step schedule: a part of num_steps if it is at most 1, else a number of steps."""
    return round(value * num_steps) if value <= 1 else round(value)


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


COUNTS = ("num_steps", "max_gaussians", "init.num_random", "density.every")
COUNTS += ("log_every", "checkpoint_every", "keep_checkpoints")
COUNTS += ("blur.width", "blur.conv_width", "blur.feature_width", "blur.embedding_width")
WHOLE = ("blur.kernel_sizes", "blur.strides", "data.mixed_factors")  # lists of whole numbers
NUMBERS = ("stages.scales", "stages.stops", "data.background")  # lists of any numbers

POSITIVE = ("optim.means", "optim.means_final", "optim.network", "optim.network_final")
NOT_NEGATIVE = ("data.near_plane", "stages.restart", "blur.warmup", "blur.logit_bound")
NOT_NEGATIVE += tuple(f"optim.{name}" for name in ("poses", "poses_final", "poses_start", "means_steps"))
NOT_NEGATIVE += tuple(f"loss.{name}" for name in ("confidence", "poses", "centroid", "mask", "depth_tv", "rgb_tv"))
NOT_NEGATIVE += tuple(f"loss.{name}" for name in ("width_tv", "sharp", "sharp_start", "sharp_view_start"))


def check_weights(config: Config) -> None:
    """Raises UserError where a rate or a weight would run away or stand still, or where a run is older than its fields."""
    groups = tuple(f"{group}.{field}" for group in ("density", "optim") for field in config[group])
    for name in dict.fromkeys(POSITIVE + NOT_NEGATIVE + groups):
        group, field = name.split(".")
        if field not in config[group]:
            raise UserError(
                f"the configuration has no {name}: it is of an earlier version; train again in another --workdir"
            )
        value = config[group][field]
        if not 0 <= value < math.inf or (name in POSITIVE and value == 0):
            raise UserError(f"config.{name} is {value}, expected {'more than' if name in POSITIVE else 'at least'} 0")
    if not 0 <= config.sh_every < math.inf:
        raise UserError(f"config.sh_every is {config.sh_every}, expected at least 0")
    if config.optim.poses and not config.optim.poses_final:
        raise UserError(
            "config.optim.poses_final is 0, expected more: --config.optim.poses=0 keeps the poses as they are"
        )
    if not 0 < config.init.opacity < 1:
        raise UserError(f"config.init.opacity is {config.init.opacity}, expected between 0 and 1")
    if not 0 <= config.loss.ssim <= 1:
        raise UserError(f"config.loss.ssim is {config.loss.ssim}, expected 0 to 1: L1 has what is left")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed is {config.seed}, expected 0 to 2147483647")


def check_known(config: Config) -> None:
    """Raises UserError where a noted configuration has a term of the loss or a rate that is gone."""
    for group, known in (("loss", Objective), ("optim", Rates)):
        gone = set(config[group].keys()) - {field.name for field in dataclasses.fields(known)} - {"means_steps"}
        if gone:
            raise UserError(
                f"the configuration has config.{group}.{min(gone)}, which is of an earlier version; train again in another --workdir"
            )


def switch_off_later(config: Config) -> Config:
    """A noted configuration without what came after it, since it was trained without that: terms of the loss weigh 0."""
    later = {"loss": {field.name: 0.0 for field in dataclasses.fields(Objective)}, "blur": {"margin": False}}
    later["data"] = {"near_plane": View.near_plane}  # which all scenes had
    for group, fields in later.items():
        config[group].update({name: off for name, off in fields.items() if name not in config[group]})
    return config


def check_lists(config: Config) -> None:
    """Raises UserError where a list has something else than numbers, which flags let pass."""
    for names, kinds, expected in ((WHOLE, int, "whole numbers"), (NUMBERS, int | float, "numbers")):
        for name in names:
            values = functools.reduce(getattr, name.split("."), config)
            if not all(isinstance(value, kinds) and math.isfinite(value) for value in values):
                raise UserError(f"config.{name} is {tuple(values)}, expected {expected}, with commas between them")


def check_counts(config: Config) -> None:
    """Raises UserError where a number that counts something is under 1, or the colours have a degree that is not there."""
    for name in COUNTS:
        value = functools.reduce(getattr, name.split("."), config)
        if value < 1:
            raise UserError(f"config.{name} is {value}, expected at least 1")
    if not 0 <= config.sh_degree <= 3:
        raise UserError(f"config.sh_degree is {config.sh_degree}, expected 0 to 3")
    if config.num_devices < 0 or config.views_per_step < 0:
        raise UserError(
            f"config.num_devices is {config.num_devices} and config.views_per_step {config.views_per_step}, expected at "
            "least 0: 0 means all devices, one view for each"
        )


def make_stages(config: Config) -> tuple[Stage, ...]:
    """The resolution schedule, with the steps without a blur model as stages of their own.

    Raises:
      UserError: lists of different lengths, a kernel of even size, scales outside (0, 1] or falling, stops that do not
        rise to the end.
    """
    num_steps, scales, kernels = config.num_steps, config.stages.scales, config.blur.kernel_sizes
    stops = [steps_of(stop, num_steps) for stop in config.stages.stops]
    _check_stages(config, stops)
    restart = steps_of(config.stages.restart, num_steps)
    warmup = steps_of(config.blur.warmup, num_steps)
    free_until = [warmup] + ([restart + warmup] if restart and config.blur.warmup_at_restart else [])
    free_from = [0] + ([restart] if len(free_until) > 1 else [])
    stages, start = [], 0
    for head, (scale, kernel, stop) in enumerate(zip(scales, kernels, stops, strict=True)):
        second = int(config.blur.second_network and restart > 0 and start >= restart)
        cuts = sorted({start, stop} | {step for step in free_from + free_until if start < step < stop})
        for a, b in itertools.pairwise(cuts):
            is_free = any(low <= a < high for low, high in zip(free_from, free_until, strict=True))
            size = 0 if is_free or not config.blur.enabled else kernel
            stages.append(Stage(a, b, scale, size, head, second))
        start = stop
    return tuple(stages)


def _check_stages(config: Config, stops: list[int]) -> None:
    scales, kernels, strides = config.stages.scales, config.blur.kernel_sizes, config.blur.strides
    num = len(scales)
    for name, values in (("stages.stops", stops), ("blur.kernel_sizes", kernels), ("blur.strides", strides)):
        if len(values) != num:
            raise UserError(f"config.{name} has {len(values)} values, expected {num}: one for each of stages.scales")
    for size in kernels:
        if size < 1 or size % 2 == 0:
            raise UserError(
                f"config.blur.kernel_sizes has {size}, expected odd sizes from 1 on: the centre must be a pixel"
            )
    if any(not 0 < scale <= 1 for scale in scales) or list(scales) != sorted(scales):
        raise UserError(f"config.stages.scales is {tuple(scales)}, expected rising scales in (0, 1]")
    if min(strides) < 1:
        raise UserError(f"config.blur.strides is {tuple(strides)}, expected strides >= 1")
    if sorted(set(stops)) != stops or stops[0] < 1 or stops[-1] != config.num_steps:
        raise UserError(
            f"config.stages.stops gives the steps {stops}, expected rising steps that end at num_steps={config.num_steps}: "
            "parts of num_steps scale with it"
        )


def check_sizes(stages: tuple[Stage, ...], width: int, height: int) -> None:
    """Raises UserError if an image scale or a kernel does not fit the images."""
    for stage in stages:
        small = min(round(width * stage.scale), round(height * stage.scale))
        if small < max(8, stage.kernel_size):
            raise UserError(
                f"images of {width} x {height} px have a side of {small} px at scale {stage.scale:g}, expected at least "
                f"{max(8, stage.kernel_size)}: raise the scale, or shrink blur.kernel_sizes or data.factor"
            )


def make_network(config: Config, num_views: int) -> BlurProposalNetwork | None:
    """The blur model; None for plain splatting."""
    blur = config.blur
    if not blur.enabled:
        return None
    return BlurProposalNetwork(
        num_views=num_views,
        kernel_sizes=tuple(blur.kernel_sizes),
        width=blur.width,
        embedding_width=blur.embedding_width,
        conv_width=blur.conv_width,
        feature_width=blur.feature_width,
        use_rgbd=blur.use_rgbd,
        use_table=blur.use_table,
        hand_over=blur.hand_over,
        linear_light=blur.linear_light,
        centre_logit=blur.centre_logit,
        mask_logit=blur.mask_logit,
        logit_bound=blur.logit_bound,
        strides=tuple(blur.strides),
    )


def margin_of(config: Config, stage: Stage) -> int:
    """How far beyond the photographs the scene is rendered: as far as their kernels reach, px of the stage's scale."""
    return stage.kernel_size // 2 if config.blur.margin else 0


def make_objective(config: Config) -> Objective:
    """Weights of the loss."""
    loss = config.loss.to_dict()
    starts = {name: steps_of(loss[name], config.num_steps) for name in ("sharp_start", "sharp_view_start")}
    return Objective(**{**loss, **starts})


MEANS_GAIN, SHAPES_GAIN = 0.75, 0.25  # powers of the shortening of a run: found by trial (experiments/LOG.md)
SHAPES = ("quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest")


def make_rates(config: Config) -> Rates:
    """Learning rates; those of the Gaussians are larger in a run shorter than means_steps, so that they get as far in fewer steps.

    A straight walk of n steps goes as far as n, a random one as the root of n: means, which travel, get a power between, all else
    a smaller one.
    """
    rates = config.optim.to_dict()
    shortening = max(1.0, rates.pop("means_steps") / config.num_steps)
    gains = {name: shortening**MEANS_GAIN for name in ("means", "means_final")}
    gains |= {name: shortening**SHAPES_GAIN for name in SHAPES}
    larger = {name: gain * rates[name] for name, gain in gains.items()}
    return Rates(**{**rates, **larger, "poses_start": steps_of(rates["poses_start"], config.num_steps)})


def make_density_plan(config: Config, stages: tuple[Stage, ...]) -> DensityPlan:
    """When and how density control acts."""
    density, num_steps = config.density, config.num_steps
    return DensityPlan(
        every=density.every,
        start=steps_of(density.start, num_steps),
        stop=steps_of(density.stop, num_steps),
        late_from=steps_of(config.stages.restart, num_steps) or stages[-1].start,
        grad_threshold=density.grad_threshold,
        grad_threshold_early=density.grad_threshold_early,
        min_opacity_early=density.min_opacity_early,
        max_radius_after=steps_of(density.max_radius_after, num_steps),
        # A reset takes place at a turn of density control.
        reset_every=round_up(steps_of(density.reset_every, num_steps), density.every),
        rules=DensityRules(density.min_opacity, density.clone_max_scale, density.max_radius),
    )


def looks_every(config: Config) -> tuple[int, int, int]:
    """Periods, in steps, after which the loop has to look: density control, log, checkpoint."""
    return config.density.every, config.log_every, config.checkpoint_every


def loop_length(config: Config) -> int:
    """Recipe.loop_length for a GPU: the shortest of these periods, if the others are multiples of it; 0: rounds would be wasted."""
    shortest = min(looks_every(config))
    return 0 if any(period % shortest for period in looks_every(config)) else shortest


def load(config: Config) -> Scene:
    """The scene that a configuration names."""
    scene = _load_photographs(config)
    return train_on_sharp(scene) if config.data.get("use_sharp", False) else scene  # get: runs from before it was there


def _load_photographs(config: Config) -> Scene:
    data = config.data
    if data.format == "procedural":
        return make_scene(
            data.blur,
            layout=data.get("layout", "still_life"),
            blur_scale=data.get("blur_scale", 1.0),
            pose_noise_px=data.get("pose_noise_px", 0.0),
            width=data.width,
            height=data.height,
            num_train=data.num_train,
            num_test=data.num_test,
            num_points=data.num_points,
            seed=data.seed,
        )
    if not data.root:
        raise UserError("config.data.root is empty, expected the folder of a capture: pass --config.data.root=FOLDER")
    root = str(pathlib.Path(data.root).expanduser())
    background: Any = tuple(float(c) for c in data.background)  # load_scene checks that they are three
    scene = load_scene(root, format=data.format, factor=data.factor, holdout=data.holdout, background=background)
    return mix_resolutions(scene, tuple(data.mixed_factors), seed=config.seed)


def count_devices(config: Config) -> int:
    """Devices that training uses; where none are asked for, as many as can share the views of a step.

    Raises:
      UserError: none that JAX can use, more than there are, or a batch that they cannot share.
    """
    try:
        there = jax.local_device_count()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts that the platform it was told to take is there
        raise UserError(
            f"JAX finds no device with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: unset it, or install what it needs (pip install '.[gpu]' in the "
            "checkout, and the driver)"
        ) from error
    if not config.num_devices:
        return max(num for num in range(1, there + 1) if config.views_per_step % num == 0)
    num = config.num_devices
    if num > there:
        raise UserError(f"config.num_devices is {num}, but this machine has {there}: 0 takes all")
    if config.views_per_step % num:
        raise UserError(f"config.views_per_step is {config.views_per_step}, expected a multiple of {num} devices, or 0")
    return num


def capacity_plan(num_points: int, max_gaussians: int) -> int:
    """Rows to start with: as many as may be needed where that is cheap, else room to double the points."""
    return min(max_gaussians, max(2 * num_points, 16_384))


def next_capacity(capacity: int, alive: int, max_gaussians: int, *, full: float = 0.8) -> int:
    """Rows for the steps to come: half as many more once a part `full` of them is in use."""
    return min(max_gaussians, math.ceil(1.5 * capacity)) if alive > full * capacity else capacity
