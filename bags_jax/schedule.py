"""What depends on the step: scalars as pure functions of it, and the stages of the resolution schedule."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of steps with one image scale and one kernel size: what is compiled together."""

    start: int  # first step
    stop: int  # one past the last
    scale: float  # of the training images, in (0, 1]
    kernel_size: int  # 0: no blur model
    head: int  # which heads of the network, counted over the stages with a blur model
    network: int = 0  # which network, where there are two

    @property
    def name(self) -> str:
        kernel = f"kernel {self.kernel_size}" if self.kernel_size else "no blur model"
        return f"scale {self.scale:g}, {kernel}"


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage:
    """The stage that takes the state from `step` to `step + 1`; the last stage also answers for the end of training."""
    for stage in stages:
        if step < stage.stop:
            return stage
    return stages[-1]


def exponential(start: float, stop: float, progress: Float[Array, ""]) -> Float[Array, ""]:
    """From start to stop along a straight line in log space, progress in [0, 1]."""
    return start * (stop / start) ** jnp.clip(progress, 0.0, 1.0)


def hold_then_decay(start: float, stop: float, hold: float, progress: Float[Array, ""]) -> Float[Array, ""]:
    """`start` until progress = hold, then exponential to `stop`."""
    return exponential(start, stop, (progress - hold) / max(1.0 - hold, 1e-6))


def phase_progress(step: Int[Array, ""], *, restart: int, num_steps: int) -> Float[Array, ""]:
    """Progress in [0, 1] of the current phase: schedules run from 0 to `restart` and again from there to the end."""
    first = step / max(restart, 1)
    second = (step - restart) / max(num_steps - restart, 1)
    return jnp.clip(jnp.where(step < restart, first, second), 0.0, 1.0)
