"""Adam with one rate for each group of parameters, and the schedules of those rates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from bags_jax.schedule import exponential, hold_then_decay, phase_progress


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rates; of means in parts of the scene extent (the step multiplies by it), network rates with the gains of its parts."""

    means: float
    means_final: float
    quats: float
    log_scales: float
    logit_opacities: float
    sh_dc: float
    sh_rest: float
    network: float
    network_final: float
    network_hold: float  # part of the schedule with the full network rate
    table_gain: float  # the rate of the per-view table is this many times the network's
    mask_gain: float
    poses: float = 0.0  # px at full image scale; 0: the poses of the capture are kept
    poses_final: float = 0.0
    poses_start: int = 0  # step from which poses are refined: before, the scene is too young to tell


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """One gradient transformation for the scene, one for the blur model, one for the poses."""

    gaussians: optax.GradientTransformation
    network: optax.GradientTransformation
    poses: optax.GradientTransformation


def _label(path, leaf) -> str:
    """The group of a parameter: the field of Gaussians that it is in."""
    del leaf
    return path[0].name


def _network_label(path, leaf) -> str:
    del leaf
    module = path[1].key
    return next((group for group in ("table", "mask") if module.startswith(group)), "network")


@functools.cache
def make_optimizers(rates: Rates, *, restart: int, num_steps: int) -> Optimizers:
    """Adam (Kingma and Ba 2015) with eps 1e-15, then one rate a group; the same object for the same rates, so that what JAX has
    compiled for one training serves the next.

    Args:
      rates: see Rates.
      restart: step at which the schedules start anew; 0: never.
      num_steps: length of training.
    """
    progress = functools.partial(phase_progress, restart=restart, num_steps=num_steps)

    def means_rate(step):
        return exponential(rates.means, rates.means_final, progress(step))

    def network_rate(gain, step):
        return gain * hold_then_decay(rates.network, rates.network_final, rates.network_hold, progress(step))

    def poses_rate(step):
        rate = exponential(rates.poses, rates.poses_final, step / num_steps) if rates.poses else 0.0
        return jnp.where(step < rates.poses_start, 0.0, rate)

    constant = ("quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest")
    groups = {name: optax.scale_by_learning_rate(getattr(rates, name)) for name in constant}
    groups["means"] = optax.scale_by_learning_rate(means_rate)
    gains = {"network": 1.0, "table": rates.table_gain, "mask": rates.mask_gain}
    network_groups = {
        name: optax.scale_by_learning_rate(functools.partial(network_rate, gain)) for name, gain in gains.items()
    }
    return Optimizers(
        gaussians=_adam(groups, _label),
        network=_adam(network_groups, _network_label),
        poses=optax.chain(optax.scale_by_adam(eps=1e-15), optax.scale_by_learning_rate(poses_rate)),
    )


def _adam(groups: dict, label) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(eps=1e-15),
        optax.multi_transform(groups, lambda params: jax.tree_util.tree_map_with_path(label, params)),
    )
