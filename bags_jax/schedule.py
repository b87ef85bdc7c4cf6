"""The stages of the resolution schedule, and learning rates as pure functions of the step."""

import dataclasses
import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.errors import UserError
from bags_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class Stage:
    """A range of steps with one image scale and one kernel size. Each stage is compiled as one training step."""

    start: int  # first step
    stop: int  # one past the last step
    scale: float  # of the training images, in (0, 1]
    kernel_size: int  # side of the blur kernels, px; 0: no blur model
    head: int  # which heads of the blur model
    network: int = 0  # which blur model, where there are two
    stride: int = 1  # side of the blocks of pixels that share a kernel, px
    margin: int = 0  # the scene is rendered this far beyond the photographs, px: light that blur carries in
    linear_light: bool = True  # blur linear light; False: blur sRGB values, as the paper does
    clips_white: bool = False  # blurred light above white clips, as in a camera
    zero_border: bool = False  # blur takes zeros from beyond the render; False: the last pixel

    @property
    def name(self) -> str:
        kernel = f"kernel {self.kernel_size}" if self.kernel_size else "no blur model"
        return f"scale {self.scale:g}, {kernel}"


def make_stages(settings: Settings) -> tuple[Stage, ...]:
    """The resolution schedule. Steps without a blur model are stages of their own.

    Args:
      settings: with numbers of steps (settings.in_steps).
    Raises:
      UserError: lists of different lengths, a kernel of even size, scales outside (0, 1] or falling, stops that do not
        rise to the last step.
    """
    _check_stages(settings)
    blur, stops, restart = settings.blur, [int(stop) for stop in settings.stages.stops], int(settings.stages.restart)
    warmup = int(blur.warmup)
    blur_free = [(0, warmup)] + ([(restart, restart + warmup)] if restart and blur.warmup_at_restart else [])
    stages, start = [], 0
    networks = head_networks(settings)
    for head, (scale, kernel, stop) in enumerate(zip(settings.stages.scales, blur.kernel_sizes, stops, strict=True)):
        ends = {end for span in blur_free for end in span if start < end < stop}
        for a, b in itertools.pairwise(sorted({start, stop} | ends)):
            size = kernel if blur.enabled and not any(low <= a < high for low, high in blur_free) else 0
            stages.append(
                Stage(
                    start=a,
                    stop=b,
                    scale=scale,
                    kernel_size=size,
                    head=head,
                    network=networks[head],
                    stride=blur.strides[head],
                    margin=size // 2 if blur.margin else 0,
                    linear_light=blur.linear_light,
                    clips_white=blur.clips_white,
                    zero_border=blur.zero_border,
                )
            )
        start = stop
    return tuple(stages)


def head_networks(settings: Settings) -> tuple[int, ...]:
    """Blur network of each head, 0 or 1: the second one from the restart on, where there are two."""
    starts, restart = (0.0, *settings.stages.stops[:-1]), settings.stages.restart
    return tuple(int(settings.blur.second_network and 0 < restart <= start) for start in starts)


def _check_stages(settings: Settings) -> None:
    scales, kernels, strides = settings.stages.scales, settings.blur.kernel_sizes, settings.blur.strides
    stops = [int(stop) for stop in settings.stages.stops]
    for name, values in (("stages.stops", stops), ("blur.kernel_sizes", kernels), ("blur.strides", strides)):
        if len(values) != len(scales):
            raise UserError(
                f"config.{name} has {len(values)} values, expected {len(scales)}: one for each of stages.scales"
            )
    for size in kernels:
        if size < 1 or size % 2 == 0:
            raise UserError(
                f"config.blur.kernel_sizes has {size}, expected odd sizes from 1 on: the centre must be a pixel"
            )
    if any(not 0 < scale <= 1 for scale in scales) or list(scales) != sorted(scales):
        raise UserError(f"config.stages.scales is {scales}, expected rising scales in (0, 1]")
    if not scales or min(strides) < 1:
        raise UserError(f"config.blur.strides is {strides}, expected strides >= 1, and at least one of stages.scales")
    if sorted(set(stops)) != stops or stops[0] < 1 or stops[-1] != settings.num_steps:
        raise UserError(
            f"config.stages.stops gives the steps {stops}, expected rising steps that end at num_steps={settings.num_steps}: "
            "shares of num_steps scale with it"
        )


def check_image_size(stages: tuple[Stage, ...], width: int, height: int) -> None:
    """Raises UserError if an image scale or a kernel does not fit images of this size."""
    for stage in stages:
        small = min(round(width * stage.scale), round(height * stage.scale))
        if small < max(8, stage.kernel_size):
            raise UserError(
                f"images of {width} x {height} px have a side of {small} px at scale {stage.scale:g}, expected at least "
                f"{max(8, stage.kernel_size)}: raise the scale, or shrink blur.kernel_sizes or data.factor"
            )


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage:
    """The stage that takes the state from `step` to `step + 1`. At the end of training: the last stage."""
    for stage in stages:
        if step < stage.stop:
            return stage
    return stages[-1]


def late_from(settings: Settings, stages: tuple[Stage, ...]) -> int:
    """First step of the late thresholds of density control: the restart, or the last stage where there is none.

    With stages.restart_density the step after the restart: the step of the restart itself is the last one of its phase.
    """
    restart = int(settings.stages.restart)
    return restart + settings.stages.restart_density if restart else stages[-1].start


def count_steps(settings: Settings, step: int) -> int:
    """The steps that density control counts after `step` steps: all, or with stages.restart_density those of the phase.

    A phase ends with the step of the restart. After the last step the count of a phase is 0: density control then changes
    nothing, because a Gaussian that was split or made transparent there would stay untrained.
    """
    if not settings.stages.restart_density:
        return step
    if step >= settings.num_steps:
        return 0
    restart, every = int(settings.stages.restart), settings.density.every
    # Rounded, because density control takes place at multiples of `every` steps.
    return step if step <= restart else step - restart // every * every


def exponential(start: float, stop: float, progress: Float[Array, ""]) -> Float[Array, ""]:
    """Interpolates from start to stop along a straight line in log space, progress in [0, 1]."""
    return start * (stop / start) ** jnp.clip(progress, 0.0, 1.0)


def hold_then_decay(start: float, stop: float, hold: float, progress: Float[Array, ""]) -> Float[Array, ""]:
    """Stays at `start` until progress = hold, then decays exponentially to `stop`."""
    return exponential(start, stop, (progress - hold) / max(1.0 - hold, 1e-6))


def phase_progress(step: Int[Array, ""], *, restart: int, num_steps: int) -> Float[Array, ""]:
    """Progress in [0, 1] of the current phase: from 0 to `restart`, and again from there to the end. restart 0: one phase."""
    first = step / max(restart, 1)
    second = (step - restart) / max(num_steps - restart, 1)
    return jnp.clip(jnp.where(step < restart, first, second), 0.0, 1.0)


def phase_step(step: Int[Array, ""], *, restart: int) -> Int[Array, ""]:
    """Steps of the current phase: counted from 0, and again from `restart`. restart 0: one phase."""
    return jnp.where(step < restart, step, step - restart)
