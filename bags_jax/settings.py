"""Every setting once: its default, meaning, unit and range.

`config.py` builds the ml_collections ConfigDict from these classes and reads it back into them; checks, `--help` and the
documentation read the same fields. Below `job.py` functions take these frozen dataclasses, never a config object.

A setting in steps (unit "steps or share") is a share of num_steps if it is at most 1, else a number of steps; `in_steps`
turns all of them into numbers of steps.
"""

import dataclasses
import math
from typing import Any, TypeVar

STEPS = "steps or share"  # unit of a setting that may be a share of num_steps
INF = math.inf
Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a setting means and which values it may have."""

    meaning: str
    unit: str = ""
    low: float = -INF
    high: float = INF
    exclusive: bool = False  # low and high themselves are not allowed
    older: Any = None  # value in runs from before the setting existed; None: such runs are refused

    @property
    def expected(self) -> str:
        """The range in words; "" where any value will do."""
        if self.low == -INF:
            return ""
        if self.high < INF:
            return f"between {self.low:g} and {self.high:g}" if self.exclusive else f"{self.low:g} to {self.high:.10g}"
        return f"{'more than' if self.exclusive else 'at least'} {self.low:g}"

    def allows(self, value: Any) -> bool:
        """True if a number is in range. No range allows NaN, or infinity where there is a lower bound."""
        if self.low == -INF:
            return True
        if self.exclusive:
            return self.low < value < self.high
        return self.low <= value <= self.high and value < INF


def setting(default: Any, meaning: str, *, unit: str = "", **limits: Any) -> Any:
    """A field of a group of settings."""
    return dataclasses.field(default=default, metadata={"rule": Rule(meaning, unit, **limits)})


def steps(default: float, meaning: str) -> Any:
    """A field in steps, or in shares of num_steps."""
    return setting(default, meaning, unit=STEPS, low=0)


def rule_of(field: dataclasses.Field) -> Rule:
    """The rule of a field that `setting` made."""
    return field.metadata["rule"]


@dataclasses.dataclass(frozen=True)
class Data:
    """The capture."""

    format: str = setting(
        "auto", "Format of the capture: auto, procedural (an embedded world), or a name in data/formats.py."
    )
    root: str = setting("", "Folder of the capture.")
    factor: int = setting(1, "Downscale factor of the photographs. 0: chosen for `minutes`.", low=0)
    shutter_anchor: str = setting(
        "mid",
        "The moment of an exposure at which the capture knows the pose of a training view: start, mid or end. At start or end poses "
        "are kept and kernels are not centred.",
        older="mid",
    )
    holdout: int = setting(0, "Hold out every n-th view. 0: the capture's file hold=n decides, else 8.", low=0)
    use_sharp: bool = setting(False, "Train on the sharp truth, where it is known: the oracle of the benchmarks.")
    mixed_factors: tuple[int, ...] = setting(
        (), "Coarsen the training views by these factors: a mixed-resolution benchmark.", low=1
    )
    near_plane: float = setting(
        0.0, "Depth at which rendering begins. 0: 0.2, or less in small scenes.", unit="scene units", low=0
    )
    resident: str = setting(
        "auto",
        "Where the photographs are while training: device, host (each dispatch gets its own), or auto: host where they would take "
        "a quarter of the device.",
        older="auto",
    )
    background: tuple[float, ...] = setting(
        (0.0, 0.0, 0.0), "Colour behind transparent photographs and the scene.", unit="sRGB", low=0, high=1
    )


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """The embedded world that `data.format=procedural` renders; see synthetic/procedural.py."""

    blur: str = setting(
        "motion", "Blur of the training photographs: motion, defocus, mixed, reduced, both, varied or none."
    )
    layout: str = setting("still_life", "The world: still_life, corner, relief or flight.")
    blur_scale: float = setting(1.0, "Strength of the blur: 1 is hard, 0.5 easy.")
    pose_noise_px: float = setting(0.0, "Error of the training poses.", unit="px")
    width: int = setting(128, "Width of the photographs.", unit="px")
    height: int = setting(84, "Height of the photographs.", unit="px")
    num_train: int = setting(24, "Number of training views.")
    num_test: int = setting(5, "Number of held-out views.")
    num_points: int = setting(1500, "Number of points in the sparse point cloud.")
    seed: int = setting(0, "Seed of cameras, blur, points, pose errors and noise.")
    exposure_spread: float = setting(
        0.0,
        "Spread of the exposures of the training photographs, as by a camera that chooses them.",
        unit="log",
        older=0.0,
    )


@dataclasses.dataclass(frozen=True)
class Init:
    """The scene that training starts from."""

    scene: str = setting(
        "",
        "Start from this scene in place of points: the folder of a run, or a PLY file in the frame of the capture.",
        older="",
    )
    num_random: int = setting(100_000, "Number of random points where the capture has no points.", low=1)
    opacity: float = setting(0.1, "Opacity of the first Gaussians.", low=0, high=1, exclusive=True)


@dataclasses.dataclass(frozen=True)
class Stages:
    """The resolution schedule. Each stage has its own compiled training step."""

    scales: tuple[float, ...] = setting((0.25, 0.5, 1.0), "Image scale of each stage.")
    stops: tuple[float, ...] = setting((0.06, 0.14, 1.0), "End of each stage.", unit=STEPS)
    restart: float = steps(0.0, "Restart the learning-rate schedules and late density thresholds here. 0: never.")
    restart_density: bool = setting(
        False,
        "Restart density control too, as the authors do: density.start, stop, max_radius_after and reset_every count from the "
        "restart, its own step has early thresholds, and the last step changes no Gaussian.",
        older=False,
    )


@dataclasses.dataclass(frozen=True)
class Blur:
    """The blur model."""

    enabled: bool = setting(True, "False trains plain splatting.")
    kernel_sizes: tuple[int, ...] = setting(
        (5, 9, 17), "Side of the blur kernels in each stage, odd. Empty: chosen for `minutes`.", unit="px"
    )
    enlarge_kernels: bool = setting(
        False, "Enlarge the kernels of the stages to come where the blur of a stage reaches their edge.", older=False
    )
    enlarged_at: tuple[int, ...] = setting(
        (), "Stages, counted from 0, at whose start training enlarged the kernels. Training writes it.", low=0, older=()
    )
    given_kernel_sizes: tuple[int, ...] = setting(
        (), "Sides of the kernels before training enlarged them. Training writes it.", unit="px", older=()
    )
    strides: tuple[int, ...] = setting(
        (1, 1, 2), "Side of the blocks of pixels that share a kernel, in each stage.", unit="px"
    )
    warmup: float = steps(0.04, "Train without the blur model up to here.")
    warmup_at_restart: bool = setting(
        False, "Train without the blur model for as long again after the restart, as the authors do."
    )
    second_network: bool = setting(False, "Use a second network after the restart.")
    published_network: bool = setting(
        False,
        "Use the network that the authors run (published_network.py). It has no table, no bound, no hand-over and no biases "
        "of its heads.",
        older=False,
    )
    ray_depth: bool = setting(
        False, "The network sees the distance along the ray, as the authors have it. False: camera z.", older=False
    )
    zero_border: bool = setting(
        False, "Blur takes zeros from beyond the render, as the authors do. False: the last pixel.", older=False
    )
    width: int = setting(32, "Width of the trunk.", low=1)
    conv_width: int = setting(8, "Width of the convolutions on the render.", low=1)
    feature_width: int = setting(16, "Width of the features that the convolutions give.", low=1)
    embedding_width: int = setting(32, "Width of the embedding of a view.", low=1)
    use_rgbd: bool = setting(True, "Let the network see the render and its depth.")
    use_position: bool = setting(True, "Let the network see the position of a pixel.", older=True)
    use_embedding: bool = setting(True, "Let the network see which view it is, by a learned embedding.", older=True)
    use_mask: bool = setting(True, "Predict a mask. False: a mask of 1 everywhere.", older=True)
    growing_trunk: bool = setting(
        True, "One more layer of the trunk with each stage. False: all stages have the layers of the last.", older=True
    )
    use_table: bool = setting(True, "Add kernel logits of each view, learned beside the network.")
    margin: bool = setting(
        True, "Render the scene beyond the border as far as kernels reach. False: repeat the last pixel."
    )
    linear_light: bool = setting(
        True,
        "Blur linear light, as a camera does. False: blur sRGB values, as a program that resizes photographs does, and the paper.",
    )
    clips_white: bool = setting(
        False,
        "Blurred light above white clips, as in a camera: lamps by night may be brighter than white, and draw white trails.",
        older=False,
    )
    hand_over: bool = setting(True, "Start the kernels of a stage from those of the stage before.")
    centre_logit: float = setting(
        6.0, "Initial logit of the centre tap above the others. 0: uniform kernels, as in the paper."
    )
    mask_logit: float = setting(3.0, "Initial logit of the mask. 0: a mask of one half, as in the paper.")
    logit_bound: float = setting(
        5.0, "Clip the logits of kernels and masks to +- this, so that they do not saturate. 0: no bound.", low=0
    )


# A new term is a field here and a line in losses.py: docs/extending_loss_term.md.
@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights of the loss terms."""

    ssim: float = setting(0.2, "Weight of 1 - SSIM; L1 gets the rest.", low=0, high=1)
    mask: float = setting(1e-4, "Weight of the mean mask.", low=0)
    centroid: float = setting(0.01, "Weight of the mean of mask times squared kernel centroid.", unit="1/px^2", low=0)
    width_tv: float = setting(
        0.02, "Weight of the total variation of kernel widths: kernels must not hide edges that the splats miss.", low=0
    )
    sharp: float = setting(
        2e-3,
        "Weight of the blur of views that look sharp: all views of a capture that looks sharp, and views much sharper than most.",
        low=0,
    )
    sharp_start: float = steps(0.3, "First step at which a capture that looks sharp is penalised for blur.")
    sharp_view_start: float = steps(0.5, "First step at which single sharp views are penalised for blur.")
    confidence: float = setting(
        1.0,
        "A view blurred by this many times the median counts half for the scene. 0: all views count the same.",
        low=0,
    )
    poses: float = setting(
        2e-3, "Weight of the squared pose correction of a view, relative to the blur of that view.", low=0
    )
    exposures: float = setting(2e-3, "Weight of the mean squared log gain of a view.", low=0, older=0.0)
    depth_tv: float = setting(0.0, "Weight of the total variation of the normalised depth.", low=0)
    rgb_tv: float = setting(0.0, "Weight of the total variation of the render.", low=0)
    depth_tv_squared: float = setting(
        0.0, "Weight of the squared variation of the normalised depth, as the authors have it.", low=0, older=0.0
    )
    rgb_tv_squared: float = setting(
        0.0, "Weight of the squared variation of the render, as the authors have it.", low=0, older=0.0
    )


@dataclasses.dataclass(frozen=True)
class Optim:
    """Learning rates of Adam."""

    means: float = setting(1.6e-4, "Rate of the means.", unit="scene extents", low=0, exclusive=True)
    means_final: float = setting(1.6e-5, "Rate of the means at the end.", unit="scene extents", low=0, exclusive=True)
    means_steps: int = setting(
        30_000,
        "Length of the runs that the rates of the Gaussians are meant for; shorter runs get larger rates. 0: never.",
        unit="steps",
        low=0,
    )
    means_decay_steps: int = setting(
        0,
        "Steps after which the rate of the means is means_final, counted from the start or the restart. 0: as many as there are.",
        unit="steps",
        low=0,
        older=0,
    )
    quats: float = setting(1e-3, "Rate of the quaternions.", low=0)
    log_scales: float = setting(5e-3, "Rate of the log scales.", low=0)
    logit_opacities: float = setting(0.05, "Rate of the opacity logits.", low=0)
    sh_dc: float = setting(2.5e-3, "Rate of the SH coefficients of degree 0.", low=0)
    sh_rest: float = setting(1.25e-4, "Rate of the other SH coefficients.", low=0)
    network: float = setting(5e-3, "Rate of the blur model.", low=0, exclusive=True)
    network_final: float = setting(5e-4, "Rate of the blur model at the end.", low=0, exclusive=True)
    network_hold: float = setting(0.5, "Share of the schedule with the full rate of the blur model.", low=0)
    table_gain: float = setting(4.0, "Rate of the per-view kernel logits, relative to the network.", low=0)
    mask_gain: float = setting(0.1, "Rate of the mask heads, relative to the network.", low=0)
    poses: float = setting(
        0.01, "Rate of the pose corrections. 0: keep the poses of the capture.", unit="px at full scale", low=0
    )
    poses_final: float = setting(1e-3, "Rate of the pose corrections at the end.", unit="px at full scale", low=0)
    poses_start: float = steps(0.3, "First step at which poses are refined.")
    exposures: float = setting(
        0.02,
        "Rate of the exposure and white balance of each view. 0: all views have the same.",
        unit="log gain",
        low=0,
        older=0.0,
    )
    exposures_final: float = setting(
        1e-3, "Rate of exposure and white balance at the end.", unit="log gain", low=0, exclusive=True, older=1e-3
    )


@dataclasses.dataclass(frozen=True)
class Density:
    """Density control: clone, split, prune, reset."""

    every: int = setting(
        100, "Period of the density control steps, and of the updates of the 3D filter.", unit="steps", low=1
    )
    start: float = steps(0.087, "First density control step.")
    stop: float = steps(0.75, "Last density control step.")
    grad_threshold: float = setting(
        2e-4, "Clone or split Gaussians whose screen gradient is at least this.", unit="NDC", low=0
    )
    grad_threshold_early: float = setting(
        2e-4, "The same before the restart, or before the last stage where there is none.", unit="NDC", low=0
    )
    min_opacity: float = setting(0.03, "Prune Gaussians below this opacity.", low=0)
    min_opacity_early: float = setting(0.03, "The same while grad_threshold_early holds.", low=0)
    clone_max_scale: float = setting(
        0.01, "Split Gaussians larger than this, clone the others.", unit="scene extents", low=0
    )
    max_radius: float = setting(
        0.0, "Prune Gaussians above this screen radius. 0: never.", unit="shares of the image", low=0
    )
    max_scale: float = setting(
        0.0,
        "Prune Gaussians wider than this where the late thresholds hold. 0: never.",
        unit="scene extents",
        low=0,
        older=0.0,
    )
    max_radius_after: float = steps(0.0, "max_radius and max_scale hold after this step.")
    reset_every: float = steps(0.0, "Period of the opacity resets. 0: never.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole training run."""

    seed: int = setting(0, "Seed of training: order of the views, network, random points.", low=0, high=2**31 - 1)
    minutes: float = setting(
        0.0,
        "Time for training, from which the settings that are 0 are chosen: budget.py.",
        unit="min",
        low=0,
        older=0.0,
    )
    num_steps: int = setting(20_000, "Number of training steps. 0: chosen for `minutes`.", low=0)
    views_per_step: int = setting(0, "Views per step over all devices. 0: one for each device.", low=0)
    num_devices: int = setting(0, "Number of devices. 0: as many as can share the views of a step.", low=0)
    shard_gaussians: bool = setting(
        False,
        "Split the Gaussians over the devices, for a scene larger than one device; False: every device has all.",
        older=False,
    )
    backend: str = setting(
        "auto", "Implementation of projection, rasterizer, blur, SSIM and convolution: auto, cpu, cuda, tpu or xla."
    )
    deterministic: bool = setting(
        False, "Sum gradients in a fixed order on a GPU: slower, and equal bit for bit in every run."
    )
    max_gaussians: int = setting(1_000_000, "Largest number of Gaussians. 0: chosen for `minutes`.", low=0)
    sh_degree: int = setting(3, "Degree of the spherical harmonics.", low=0, high=3)
    sh_every: float = steps(0.05, "Add one degree of spherical harmonics after every so many steps.")
    data: Data = Data()
    synthetic: Synthetic = Synthetic()
    init: Init = Init()
    stages: Stages = Stages()
    blur: Blur = Blur()
    loss: Loss = Loss()
    optim: Optim = Optim()
    density: Density = Density()
    log_every: int = setting(100, "Period of the logs.", unit="steps", low=1)
    checkpoint_every: int = setting(1000, "Period of the checkpoints.", unit="steps", low=1)
    pictures: bool = setting(
        True,
        "Draw a held-out view and the blurriest photograph with its kernels into TensorBoard at each checkpoint.",
        older=True,
    )
    pictures_every: int = setting(
        0,
        "Period of these pictures: at the first checkpoint from each multiple on. 0: at each checkpoint.",
        unit="steps",
        low=0,
        older=0,
    )
    keep_checkpoints: int = setting(2, "Number of checkpoints to keep.", low=1)
    compilation_cache: str = setting(
        "auto", 'Folder of compiled programs. auto: in $XDG_CACHE_HOME or ~/.cache. "": none.'
    )


def to_steps(value: float, num_steps: int) -> int:
    """A setting in steps as a number of steps: at most 1 is a share of num_steps."""
    return round(value * num_steps) if value <= 1 else round(value)


def in_steps(group: Group, num_steps: int) -> Group:
    """A group of settings, or all of them, with every setting in steps as a number of steps."""
    changes = {}
    for field in dataclasses.fields(group):  # type: ignore[arg-type]
        value = vars(group)[field.name]
        if dataclasses.is_dataclass(value):
            changes[field.name] = in_steps(value, num_steps)
        elif rule_of(field).unit == STEPS:
            is_list = isinstance(value, tuple)
            changes[field.name] = (
                tuple(to_steps(x, num_steps) for x in value) if is_list else to_steps(value, num_steps)
            )
    return dataclasses.replace(group, **changes)  # type: ignore[type-var]


def rows(group: Any = Settings, prefix: str = "") -> list[tuple[str, Any, Rule]]:
    """Dotted name, default and rule of every setting, in the order of the classes."""
    found = []
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(field.default):
            found += rows(field.default, f"{prefix}{field.name}.")
        else:
            found.append((f"{prefix}{field.name}", field.default, rule_of(field)))
    return found
