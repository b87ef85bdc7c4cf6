"""A budget of minutes: image size, steps, capacity and kernels that fit the photographs, the machine and the time.

A setting that is 0 (kernel sizes: empty) is chosen here; all others stay as they are given. The time of a step is estimated from the
image size, the number of Gaussians and the kernels. docs/decisions/0033 has the measurements behind the constants.
"""

import dataclasses
import math
import pathlib

from bags_jax.data.load import CaptureSize, measure_capture
from bags_jax.errors import UserError
from bags_jax.platforms import count_cores, current_platform
from bags_jax.settings import Settings
from bags_jax.workdir import CONFIG_FILE, read_settings

FULL_STEPS, FULL_WIDTH, FULL_GAUSSIANS = 20_000, 1600, 1_000_000  # a longer run, larger photographs (px) are not chosen
FEWEST_STEPS = 200
STEPS_BEFORE_SIZE = 3000  # once there are as many steps, larger images are worth more than further steps
FEWEST_GAUSSIANS = 8_000
KERNEL_SHARE = 0.04  # side of the kernels at full image scale, as a share of the image width
SMALLEST_KERNEL, LARGEST_KERNEL = 9, 25  # px
SMALLEST_SIDE = 100  # px


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Estimated time of training on a kind of machine."""

    startup_s: float  # loading, and compiling before and during the first steps
    step_ms: float  # of each step
    pixel_us: float  # of each pixel
    gaussian_us: float  # of each Gaussian
    tap_us: float  # of each kernel tap of each pixel
    gaussians_per_pixel: float  # capacity that is worth its time there

    def seconds(self, pixels: int, gaussians: int, kernel: int, stride: int) -> float:
        """Time of one step."""
        taps = pixels * (kernel / stride) ** 2
        return 1e-6 * (1e3 * self.step_ms + pixels * self.pixel_us + gaussians * self.gaussian_us + taps * self.tap_us)


ONE_CORE = StepCost(startup_s=60.0, step_ms=6.0, pixel_us=0.55, gaussian_us=0.9, tap_us=0.006, gaussians_per_pixel=0.25)
CORES_POWER = 0.7  # c cores are c to this power as fast as one
# Estimated from counts of bytes and instructions for an H200, never measured.
GPU = StepCost(startup_s=60.0, step_ms=3.0, pixel_us=0.01, gaussian_us=0.005, tap_us=5e-5, gaussians_per_pixel=1.0)


def find_step_cost(platform: str, cores: int) -> StepCost:
    """The cost of a step on this kind of machine."""
    if platform != "cpu":
        return GPU
    speed, times = cores**CORES_POWER, ("startup_s", "step_ms", "pixel_us", "gaussian_us", "tap_us")
    return dataclasses.replace(ONE_CORE, **{name: getattr(ONE_CORE, name) / speed for name in times})


def fill_in(settings: Settings, workdir: str | pathlib.Path) -> tuple[Settings, tuple[str, ...]]:
    """Chooses the settings that are 0, and says in one line what was chosen; no line where nothing was.

    A run that has begun keeps what was chosen for it.

    Args:
      settings: as `config.read_config` returns them.
      workdir: folder of the run.
    Raises:
      UserError: a setting is 0 and so is `minutes`, or the capture cannot be read.
    """
    open_names = _names_to_choose(settings)
    if not open_names:
        return settings, ()
    path = pathlib.Path(workdir).expanduser()
    if (path / CONFIG_FILE).is_file():
        saved = read_settings(path)
        return _replace(settings, {name: _value(saved, name) for name in open_names}), ()
    if not settings.minutes:
        raise UserError(f"config.{open_names[0]} is 0, expected a value, or config.minutes from which it is chosen")
    capture = _measure(settings)
    cost = find_step_cost(current_platform(), count_cores())
    chosen = {name: value for name, value in choose(settings, capture, cost).items() if name in open_names}
    flags = " ".join(f"--config.{name}={_typed(value)}" for name, value in chosen.items())
    width, height = _reduce(capture, chosen.get("data.factor", settings.data.factor))
    where = f"{count_cores()} CPU cores" if current_platform() == "cpu" else current_platform()
    line = f"for {settings.minutes:g} minutes on {where}, {capture.num_views} photographs at {width} x {height} px: {flags}"
    return _replace(settings, chosen), (line,)


def choose(settings: Settings, capture: CaptureSize, cost: StepCost) -> dict:
    """Chooses image size, steps, capacity and kernels by dotted name. Settings that are given are taken as they are.

    The image is the largest that leaves STEPS_BEFORE_SIZE steps; the steps are those that fit the time.
    """
    seconds = max(0.0, 60.0 * settings.minutes - cost.startup_s)
    for factor in [settings.data.factor] if settings.data.factor else _factors(capture):
        width, height = _reduce(capture, factor)
        kernels = settings.blur.kernel_sizes or choose_kernels(width, settings.stages.scales)
        gaussians = settings.max_gaussians or choose_capacity(
            cost.gaussians_per_pixel * width * height, capture.num_points
        )
        stride = settings.blur.strides[-1]
        fitting = int(seconds / cost.seconds(width * height, gaussians, kernels[-1], stride))
        if fitting >= (settings.num_steps or STEPS_BEFORE_SIZE):
            break
    num_steps = min(FULL_STEPS, max(FEWEST_STEPS, fitting // 100 * 100))
    return {"data.factor": factor, "num_steps": num_steps, "max_gaussians": gaussians, "blur.kernel_sizes": kernels}


def choose_kernels(width: int, scales: tuple[float, ...]) -> tuple[int, ...]:
    """Sides of the kernels in each stage, odd, for images of a width in px at full image scale."""
    largest = min(LARGEST_KERNEL, max(SMALLEST_KERNEL, KERNEL_SHARE * width))
    return tuple(max(3, 2 * round((largest * scale - 1) / 2) + 1) for scale in scales)


def choose_capacity(worthwhile: float, num_points: int) -> int:
    """Largest number of Gaussians, in thousands: as many as are worth their time, and not fewer than there are points."""
    wanted = max(FEWEST_GAUSSIANS, min(FULL_GAUSSIANS, round(worthwhile)), num_points)
    return -(-wanted // 1000) * 1000


def _factors(capture: CaptureSize) -> list[int]:
    """Downscale factors from the largest image that is chosen to the smallest."""
    least = max(1, math.ceil(max(capture.width, capture.height) / FULL_WIDTH))
    most = max(least, min(capture.width, capture.height) // SMALLEST_SIDE)
    return list(range(least, most + 1))


def _reduce(capture: CaptureSize, factor: int) -> tuple[int, int]:
    return max(1, round(capture.width / factor)), max(1, round(capture.height / factor))


def _measure(settings: Settings) -> CaptureSize:
    data, world = settings.data, settings.synthetic
    if data.format == "procedural":
        return CaptureSize(world.num_train + world.num_test, world.width, world.height, world.num_points)
    if not data.root:
        raise UserError("config.data.root is empty, expected the folder of a capture: pass --config.data.root=FOLDER")
    return measure_capture(data.root, format=data.format)


def _names_to_choose(settings: Settings) -> list[str]:
    names = ("data.factor", "num_steps", "max_gaussians", "blur.kernel_sizes")
    return [name for name in names if not _value(settings, name)]


def _value(settings: Settings, name: str):
    group, _, field = name.rpartition(".")
    return getattr(getattr(settings, group) if group else settings, field)


def _replace(settings: Settings, values: dict) -> Settings:
    for name, value in values.items():
        group, _, field = name.rpartition(".")
        if group:
            value, field = dataclasses.replace(getattr(settings, group), **{field: value}), group
        settings = dataclasses.replace(settings, **{field: value})
    return settings


def _typed(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
