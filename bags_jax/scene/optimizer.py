"""Adam with one learning rate for each group of parameters, and the schedules of those rates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from bags_jax.blur_model.protocol import RATE_GROUPS, BlurModel
from bags_jax.errors import UserError
from bags_jax.schedule import exponential, hold_then_decay, phase_progress, phase_step
from bags_jax.settings import Optim
from bags_jax.structs import Gaussians

# Powers of the shortening of a run, found by trial (docs/decisions). After n steps a straight walk is n steps away, a random
# walk the root of n: the means, which travel, get a power between, all other parameters of the Gaussians a smaller one.
MEANS_POWER, SHAPES_POWER = 0.75, 0.25


@dataclasses.dataclass(frozen=True)
class Optimizers:
    """One gradient transformation for the Gaussians, one for the blur model, one for the poses, one for the exposures."""

    gaussians: optax.GradientTransformation
    network: optax.GradientTransformation
    poses: optax.GradientTransformation
    exposures: optax.GradientTransformation


def scale_rates(optim: Optim, num_steps: int) -> Optim:
    """Enlarges the rates of the Gaussians in a run shorter than optim.means_steps, so that they get as far in fewer steps."""
    shortening = max(1.0, optim.means_steps / num_steps)
    of_means, of_shapes = shortening**MEANS_POWER, shortening**SHAPES_POWER
    return dataclasses.replace(
        optim,
        means=of_means * optim.means,
        means_final=of_means * optim.means_final,
        quats=of_shapes * optim.quats,
        log_scales=of_shapes * optim.log_scales,
        logit_opacities=of_shapes * optim.logit_opacities,
        sh_dc=of_shapes * optim.sh_dc,
        sh_rest=of_shapes * optim.sh_rest,
    )


@functools.cache
def make_optimizers(optim: Optim, model: BlurModel | None, *, restart: int, num_steps: int) -> Optimizers:
    """Makes Adam (Kingma and Ba 2015) with eps 1e-15, and one rate for each group of parameters.

    Cached: equal arguments give the same object, so that training steps compiled for one run serve the next.

    Args:
      optim: the rates; that of the means is a share of the scene extent (the training step multiplies by it).
      model: the blur model, which says the group of each of its parameters; None: plain splatting.
      restart: step at which the schedules restart; 0: never.
      num_steps: length of training.
    """
    progress = functools.partial(phase_progress, restart=restart, num_steps=num_steps)

    def means_rate(step):
        decay = optim.means_decay_steps
        fallen = phase_step(step, restart=restart) / decay if decay else progress(step)
        return exponential(optim.means, optim.means_final, fallen)

    def network_rate(gain, step):
        return gain * hold_then_decay(optim.network, optim.network_final, optim.network_hold, progress(step))

    def poses_rate(step):
        rate = exponential(optim.poses, optim.poses_final, step / num_steps) if optim.poses else 0.0
        return jnp.where(step < optim.poses_start, 0.0, rate)

    def exposures_rate(step):
        return exponential(optim.exposures, optim.exposures_final, step / num_steps) if optim.exposures else 0.0

    rates = {
        "quats": optim.quats,
        "log_scales": optim.log_scales,
        "logit_opacities": optim.logit_opacities,
        "sh_dc": optim.sh_dc,
        "sh_rest": optim.sh_rest,
        "means": means_rate,
    }
    gains = {"network": 1.0, "table": optim.table_gain, "mask": optim.mask_gain}
    network_rates = {name: functools.partial(network_rate, gain) for name, gain in gains.items()}

    def network_groups(params):
        return {name: _rate_groups(model, part) for name, part in params.items()} if model is not None else params

    return Optimizers(
        gaussians=_adam(rates, _gaussian_groups),
        network=_adam(network_rates, network_groups),
        poses=optax.chain(optax.scale_by_adam(eps=1e-15), optax.scale_by_learning_rate(poses_rate)),
        exposures=optax.chain(optax.scale_by_adam(eps=1e-15), optax.scale_by_learning_rate(exposures_rate)),
    )


def _rate_groups(model: BlurModel, params):
    """The rate groups of a blur model, checked: optax's own message says neither the name nor what was expected."""
    groups = model.rate_groups(params)
    for group in jax.tree.leaves(groups):
        if group not in RATE_GROUPS:
            expected = f"{', '.join(RATE_GROUPS[:-1])} or {RATE_GROUPS[-1]}"
            raise UserError(f"{type(model).__name__}.rate_groups gives {group!r}, expected {expected}")
    return groups


def _gaussian_groups(gaussians: Gaussians):
    """The group of each parameter: the field of Gaussians that it is in."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].name, gaussians)


def _adam(rates: dict, groups) -> optax.GradientTransformation:
    """Adam with the rate of each group; `groups` gives the group of each parameter."""
    transforms = {name: optax.scale_by_learning_rate(rate) for name, rate in rates.items()}
    return optax.chain(optax.scale_by_adam(eps=1e-15), optax.multi_transform(transforms, groups))
