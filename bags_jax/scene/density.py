"""Density control at fixed capacity: clone, split, prune, reset (Kerbl et al. 2023, section 5), all inside jit.

Arrays are never resized: a mask says which rows are alive, and new Gaussians move into dead rows. The moments of Adam are
stored as Gaussians too, so that the same moves apply to them.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bags_jax.geometry import apply_filter_3d, rotation_from_quat
from bags_jax.settings import Density
from bags_jax.shards import WHOLE, Shards
from bags_jax.structs import DensityStats, Gaussians, Projected, TrainState

SPLIT_SHRINK = 1.6
RESET_OPACITY = 0.01


class Thresholds(NamedTuple):
    """Thresholds of one density control step. They may be traced: one compiled program serves all of them."""

    grad: float | Float[Array, ""]  # clone or split at and above this screen gradient, NDC
    min_opacity: float | Float[Array, ""]  # prune below this opacity
    clone_max_scale: float | Float[Array, ""]  # split above this scale, shares of the scene extent
    max_radius: float | Float[Array, ""] = 0.0  # prune above this screen radius, shares of the image; 0: never
    max_scale: float | Float[Array, ""] = 0.0  # prune above this scale, shares of the scene extent; 0: never


def is_density_step(density: Density, step: int) -> bool:
    """True if Gaussians are cloned, split and pruned after this many steps.

    Args:
      density: in steps (settings.in_steps).
      step: as schedule.count_steps counts.
    """
    return step % density.every == 0 and density.start <= step <= density.stop


def is_reset_step(density: Density, step: int) -> bool:
    """True if opacities are reset after this many steps (schedule.count_steps); only at density control steps."""
    period = -(-int(density.reset_every) // density.every) * density.every
    return period > 0 and step % period == 0 and density.start <= step < density.stop


def thresholds_at(density: Density, step: int, *, is_early: bool) -> Thresholds:
    """The early or late thresholds after this many steps, as schedule.count_steps counts."""
    limits_hold = step > density.max_radius_after
    return Thresholds(
        grad=density.grad_threshold_early if is_early else density.grad_threshold,
        min_opacity=density.min_opacity_early if is_early else density.min_opacity,
        clone_max_scale=density.clone_max_scale,
        max_radius=density.max_radius if limits_hold else 0.0,
        max_scale=density.max_scale if limits_hold and not is_early else 0.0,
    )


def empty_stats(num: int) -> DensityStats:
    """The statistics of no view."""
    return DensityStats(jnp.zeros(num), jnp.zeros(num), jnp.zeros(num))


def view_stats(
    probe_grads: Float[Array, "N 2"],
    projected: Projected,
    *,
    width: Int[Array, ""] | int,
    height: Int[Array, ""] | int,
    margin: int = 0,
) -> DensityStats:
    """The statistics of one view: norm of the screen gradient in NDC (px times half the image size), visits, radii.

    Args:
      probe_grads: gradient of the loss by the projected means, 1 / px.
      projected: Gaussians on the canvas, which may be larger than the photograph at the right and bottom (padding).
      width, height: size of the photograph, px.
      margin: px of the canvas around the photograph; Gaussians seen only there count as seen.
    """
    sides = jnp.array([[width, height]], jnp.float32)
    seen = projected.radii_px[:, 0] > 0
    seen &= (projected.means_px - projected.radii_px < sides + 2 * margin).all(axis=-1)
    return DensityStats(
        grad_norms=jnp.where(seen, jnp.linalg.norm(probe_grads * (0.5 * sides), axis=-1), 0.0),
        counts=seen.astype(jnp.float32),
        max_radii=jnp.where(seen, jnp.max(projected.radii_px, axis=-1), 0.0) / jnp.max(sides),
    )


def sum_view_stats(
    probe_grads: Float[Array, "C N 2"], projected: Projected, *, sizes: Int[Array, "C 2"], margin: int = 0
) -> DensityStats:
    """The statistics of several views; see `view_stats`. Every array of `projected` has an axis C in front.

    Args:
      sizes: height and width of the photographs, px.
    """

    def stats_of(grads, seen, size):
        return view_stats(grads, seen, width=size[1], height=size[0], margin=margin)

    each = jax.vmap(stats_of)(probe_grads, projected, sizes)
    return DensityStats(jnp.sum(each.grad_norms, 0), jnp.sum(each.counts, 0), jnp.max(each.max_radii, 0))


def add_stats(a: DensityStats, b: DensityStats) -> DensityStats:
    """The statistics of the views of both."""
    return DensityStats(a.grad_norms + b.grad_norms, a.counts + b.counts, jnp.maximum(a.max_radii, b.max_radii))


def _where_rows(mask: Bool[Array, "N"], new: Gaussians, old: Gaussians) -> Gaussians:
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)


def _split_child(gaussians: Gaussians, noise: Float[Array, "N 3"]) -> Gaussians:
    """One of the two Gaussians that a large one is split into: sampled from it, and smaller.

    The symmetric root of the covariance, R S R^T, shapes the noise. For a round Gaussian that root does not depend on R, which is
    rounding noise there (enlarged by Adam) and differs between devices.
    """
    rotation = rotation_from_quat(gaussians.quats)
    along_axes = jnp.exp(gaussians.log_scales) * jnp.einsum("nji,nj->ni", rotation, noise)
    offset = jnp.einsum("nij,nj->ni", rotation, along_axes)
    return dataclasses.replace(
        gaussians, means=gaussians.means + offset, log_scales=gaussians.log_scales - jnp.log(SPLIT_SHRINK)
    )


def _prune(state: TrainState, thresholds: Thresholds) -> Bool[Array, "N"]:
    keep = state.alive & (jax.nn.sigmoid(state.gaussians.logit_opacities) >= thresholds.min_opacity)
    limit = jnp.where(jnp.asarray(thresholds.max_radius) > 0, thresholds.max_radius, jnp.inf)
    return keep & (state.density.max_radii <= limit)


class Births(NamedTuple):
    """Which Gaussians one density control step copies into which rows, over all devices."""

    num: Int[Array, ""]
    sources: Int[Array, "N"]  # rows to copy; the first `num` of them count
    targets: Int[Array, "N"]  # dead rows to copy to; N, beyond the end, after the first `num`


def _plan_births(wanted: Bool[Array, "N"], mean_grad: Float[Array, "N"], alive: Bool[Array, "N"], max_rows: int):
    """The births of all devices, for the rows of all of them. Rows from max_rows on stay dead."""
    total = alive.shape[0]
    sources = jnp.argsort(jnp.where(wanted, -mean_grad, jnp.inf))
    free_rows = jnp.argsort(alive, stable=True)
    num = jnp.minimum(jnp.sum(wanted), jnp.sum(~alive[:max_rows]))
    return Births(num, sources, jnp.where(jnp.arange(total) < num, free_rows, total))


def densify_and_prune(
    state: TrainState,
    key: Array,
    thresholds: Thresholds,
    *,
    extent: Float[Array, ""] | float,
    shards: Shards = WHOLE,
    max_rows: int | None = None,
) -> TrainState:
    """One density control step: prunes, then clones small and splits large Gaussians whose screen gradient is large.

    Where dead rows run out, the Gaussians with the largest gradients come first. Gaussians that are too wide even after they
    were split are pruned at the end. The statistics are reset.

    Where the rows are split over devices, all of them agree on one plan: a state changes as it would on one device.

    Args:
      state: the rows of this device.
      key: equal on all devices.
      thresholds: of this step.
      extent: of the scene, scene units.
      shards: where the rows are.
      max_rows: rows from this on stay dead; None: all may be used.
    """
    total = shards.count_rows(state.alive)
    alive = _prune(state, thresholds)
    mean_grad = state.density.grad_norms / jnp.maximum(state.density.counts, 1.0)
    wanted = alive & (mean_grad >= thresholds.grad)
    limit = total if max_rows is None else min(total, max_rows)
    births = _plan_births(*shards.gather((wanted, mean_grad, alive)), max_rows=limit)
    are_granted = jnp.arange(total) < births.num
    flag = lambda rows: shards.own(jnp.zeros(total, bool).at[rows].set(True, mode="drop"))
    parents, new = flag(jnp.where(are_granted, births.sources, total)), flag(births.targets)

    large = jnp.max(state.gaussians.log_scales, axis=-1) > jnp.log(thresholds.clone_max_scale * extent)
    # As many numbers as without the dead rows that make the shards equally large: they depend on how many there are.
    noise = jnp.pad(jax.random.normal(key, (2, limit, 3)), [(0, 0), (0, total - limit), (0, 0)])
    split = parents & large
    children = _where_rows(large, _split_child(state.gaussians, shards.own(noise[0])), state.gaussians)
    gaussians = _where_rows(split, _split_child(state.gaussians, shards.own(noise[1])), state.gaussians)
    gaussians, filter_3d = shards.move(
        (gaussians, state.filter_3d), (children, state.filter_3d), births.sources, births.targets, births.num
    )

    def forget(moments: Gaussians) -> Gaussians:
        return _where_rows(split | new, jax.tree.map(jnp.zeros_like, moments), moments)

    return dataclasses.replace(
        state,
        gaussians=gaussians,
        alive=(alive | new) & ~_too_wide(gaussians, thresholds.max_scale, extent),
        filter_3d=filter_3d,
        gaussians_opt=_map_moments(forget, state.gaussians_opt),
        density=empty_stats(state.alive.shape[0]),
    )


def _too_wide(gaussians: Gaussians, max_scale, extent) -> Bool[Array, "N"]:
    limit = jnp.where(jnp.asarray(max_scale) > 0, max_scale * extent, jnp.inf)
    return jnp.max(gaussians.log_scales, axis=-1) > jnp.log(limit)


def _map_moments(change, opt_state):
    """Applies `change` to all moments in the state of an optimiser; they are stored as Gaussians."""
    is_moments = lambda node: isinstance(node, Gaussians)
    return jax.tree.map(lambda node: change(node) if is_moments(node) else node, opt_state, is_leaf=is_moments)


def reset_opacity(state: TrainState) -> TrainState:
    """Lowers every opacity, after the 3D filter, to at most 0.01, and clears the moments of the opacities."""
    scales, opacities = jnp.exp(state.gaussians.log_scales), jax.nn.sigmoid(state.gaussians.logit_opacities)
    _, filtered = apply_filter_3d(scales, opacities, state.filter_3d)
    attenuation = filtered / jnp.maximum(opacities, 1e-12)
    lowered = jnp.minimum(filtered, RESET_OPACITY) / jnp.maximum(attenuation, 1e-12)
    lowered = jnp.clip(lowered, 1e-6, 1.0 - 1e-6)
    logits = jnp.log(lowered) - jnp.log1p(-lowered)

    def forget(moments: Gaussians) -> Gaussians:
        return dataclasses.replace(moments, logit_opacities=jnp.zeros_like(logits))

    return dataclasses.replace(
        state,
        gaussians=dataclasses.replace(state.gaussians, logit_opacities=logits),
        gaussians_opt=_map_moments(forget, state.gaussians_opt),
    )
