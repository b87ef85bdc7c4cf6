"""One training step: render, blur, compare, differentiate, update. Pure and un-mapped: parallel.py maps it over devices.

A step is a function of the state alone: `state.step` decides which views it trains on. A step that cannot be trusted (the
intersection buffer was too small, or loss or gradients are not finite) returns the state unchanged. The host may
therefore read the metrics later, enlarge the buffer and run the step again: nothing is lost and nothing is done twice.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from bags_jax import losses
from bags_jax.blur_model.protocol import BlurModel
from bags_jax.blur_model.statistics import shares, view_statistics
from bags_jax.geometry import LARGEST
from bags_jax.numerics import weigh_gradient
from bags_jax.packing import pack, unpacker
from bags_jax.parallel import pmax, psum
from bags_jax.platforms import current_platform
from bags_jax.rendering import Rendered, View, draw, keep_visible, render, render_blurred, see
from bags_jax.scene.confidence import pose_trust, view_confidence
from bags_jax.scene.density import add_stats, sum_view_stats, view_stats
from bags_jax.scene.exposure import expose, hold_brightness
from bags_jax.scene.optimizer import Optimizers
from bags_jax.scene.pose_refinement import corrected_camera, hold_gauge
from bags_jax.schedule import Stage
from bags_jax.settings import Loss
from bags_jax.shards import WHOLE, Shards
from bags_jax.spherical_harmonics import MAX_DEGREE
from bags_jax.structs import Camera, Dataset, DensityStats, Gaussians, Projected, Seen, TrainState, network_name

# Views of one step: those of this device, and where Gaussians are split over devices those of all devices, else None.
StepViews = tuple[Int[Array, "B"], Int[Array, "B D"] | None]
FEW = 1 << 16  # arrays of at most this many numbers are checked together
LAST_STEP = jnp.iinfo(jnp.int32).max
COUNTS = ("num_intersections", "num_dropped", "num_visible", "num_unsent")  # metrics of a step, largest over its views


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything static in a training step."""

    stage: Stage
    view: View
    loss: Loss  # with numbers of steps
    optimizers: Optimizers
    model: BlurModel | None  # None: plain splatting
    views_per_step: int
    num_devices: int
    sh_every: int  # steps after which one more degree of SH is in use; 0: all degrees from the start
    learns_exposures: bool = False
    # Trip count of the fori_loop over the steps of one dispatch. Surplus iterations change nothing. GPUs need it, because each
    # iteration of a while_loop waits for the host there. 0: use a while_loop.
    loop_length: int = 0
    shards: Shards = WHOLE  # where the rows of the Gaussians are
    max_sent: int = 0  # Gaussians that a device sends to another for a view; 0: all, the visible and the others


def draw_views(
    recipe: Recipe, num_views: int, seed: Int[Array, ""], step: Int[Array, ""], rank: Int[Array, ""]
) -> Int[Array, "B"]:
    """The views of one device at one step. All views are seen once, in random order, before the next permutation starts."""
    per_device = recipe.views_per_step // recipe.num_devices
    places = step * recipe.views_per_step + rank * per_device + jnp.arange(per_device)
    return jax.vmap(lambda place: view_at(seed, place, num_views))(places)


def view_at(seed: Int[Array, ""], place: Int[Array, ""], num_views: int) -> Int[Array, ""]:
    """The view at one place of the order of a training."""
    order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), place // num_views), num_views)
    return order[place % num_views]


def views_of_step(
    recipe: Recipe, num_views: int, seed: Int[Array, ""], step: Int[Array, ""], rank: Int[Array, ""]
) -> StepViews:
    """The views of one step on one device."""
    own = draw_views(recipe, num_views, seed, step, rank)
    if not recipe.shards.are_split:
        return own, None
    of_all = jax.vmap(lambda rank: draw_views(recipe, num_views, seed, step, rank), out_axes=1)
    return own, of_all(jnp.arange(recipe.num_devices))


def training_camera(dataset: Dataset, poses: Float[Array, "V 6"], index: Int[Array, ""]) -> Camera:
    """The camera of one training view, with its pose correction where poses are refined."""
    camera = jax.tree.map(lambda x: x[index], dataset.cameras)
    return camera if dataset.pose_frame is None else corrected_camera(camera, poses[index], dataset.pose_frame)


def see_scene(
    trained: tuple[Gaussians, Float[Array, "V 6"], Float[Array, "*D N 2"]],
    state: TrainState,
    dataset: Dataset,
    index: Int[Array, ""],
    views: Int[Array, "D"] | None,
    *,
    recipe: Recipe,
) -> tuple[Seen, Projected, Int[Array, ""]]:
    """All Gaussians as one training view sees them.

    Where the Gaussians are split over devices, each projects and colours its own for the views of all devices, and sends them.

    Returns:
      what the view sees; the Gaussians of this device on its screen, or on those of `views`; and how many of them one of `views`
      sees at most (0 without `views`): more than recipe.max_sent, unless that is 0, are not all sent.
    """
    gaussians, poses, probe = trained
    sh_degree = state.step // recipe.sh_every if recipe.sh_every else MAX_DEGREE
    confidence = view_confidence(state.blur_px, recipe.loss.confidence)

    def see_view(view):
        index, probe = view
        weighed, camera = weigh_gradient(gaussians, confidence[index]), training_camera(dataset, poses, index)
        how = {"view": recipe.view, "sh_degree": sh_degree, "probe_px": probe}
        return see(weighed, state.alive, state.filter_3d, camera, **how)

    if views is None:
        seen = see_view((index, probe))
        return seen, seen.projected, jnp.int32(0)

    def send_view(view):
        seen = see_view(view)
        sent, rows = keep_visible(seen, recipe.max_sent) if recipe.max_sent else (seen, None)
        return sent, rows, seen.projected

    # Projected again for the gradient: keeping all that it needs would take more memory than the Gaussians.
    sent, rows, projected = jax.lax.map(jax.checkpoint(send_view), (views, probe))
    num_visible = jnp.max(jnp.sum(projected.radii_px[..., 0] > 0, axis=-1))
    return recipe.shards.exchange(sent, rows), projected, num_visible


def loss_fn(
    trained: tuple[Gaussians, dict, Float[Array, "V 6"], Float[Array, "V 3"], Float[Array, "*D N 2"]],
    state: TrainState,
    dataset: Dataset,
    index: Int[Array, ""],
    views: Int[Array, "D"] | None = None,
    *,
    recipe: Recipe,
):
    """Loss of one training view.

    Args:
      trained: the differentiated part: Gaussians, parameters of the blur model, pose corrections, exposures, and the probe of the
        projected means (zeros), for each of `views` where there are such.
      state: the rest of the state.
      dataset: training views at the scale of the stage.
      index: the view.
      views: that of each device, where the Gaussians are split over devices; else None.
      recipe: static part.
    Returns:
      loss, and (terms, Rendered, Projected, num_visible): all terms by name, unweighted, with the PSNR to the photograph; the
      others as `see_scene` returns them.
    """
    gaussians, params, poses, exposures, probe = trained
    stage, view, model = recipe.stage, recipe.view, recipe.model
    seen, projected, num_visible = see_scene((gaussians, poses, probe), state, dataset, index, views, recipe=recipe)
    rendered = draw(seen, view=view)
    row = index if dataset.slots is None else dataset.slots[index]
    photo = dataset.images[row].astype(jnp.float32) / 255.0
    height, width = dataset.sizes[index]
    valid = (jnp.arange(view.height) < height)[:, None] & (jnp.arange(view.width) < width)[None, :]
    if dataset.valid is not None:
        valid &= dataset.valid[row]
    sharp = rendered.crop_margin()
    image, blur_terms, blur_px = sharp.image, {}, jnp.zeros(())
    if model is not None and stage.kernel_size:
        own = params[network_name(stage.network)]
        image, moments = render_blurred(model, own, index, rendered, stage=stage, backend=view.backend)
        image = losses.clip_white(image, photo) if stage.clips_white else image
        share = shares(valid, stage.stride)
        where = moments, share, state.blur_px, index, state.step
        blur_terms = losses.blur_terms(*where, stage=stage, loss=recipe.loss)
        blur_px = view_statistics(moments, share).rms_width / stage.scale
    if recipe.learns_exposures:
        image = expose(image, exposures[index])
    terms = losses.photo_terms(image, photo, valid, sharp, loss=recipe.loss, backend=view.backend) | blur_terms
    if dataset.pose_frame is not None:
        terms["poses"] = pose_trust(state.blur_px[index]) * jnp.sum(poses[index] ** 2)
    if recipe.learns_exposures:
        terms["exposures"] = jnp.mean(exposures[index] ** 2)
    total = losses.weighted_sum(terms, recipe.loss)
    terms["blur_px"] = blur_px
    terms["psnr"] = losses.psnr_from_mse(losses.mse(image, photo, valid))
    return total, ({"total": total, **terms}, rendered, projected, num_visible)


def _view_gradients(state: TrainState, dataset: Dataset, index, views, recipe: Recipe):
    """Gradients, density statistics and metrics of one view; those of the own Gaussians are of the views of all devices."""
    num, margin = state.alive.shape[0], recipe.view.margin
    probe = jnp.zeros((num, 2) if views is None else (views.shape[0], num, 2))
    gradient_of = jax.grad(loss_fn, has_aux=True)
    (*grads, d_probe), (terms, rendered, projected, num_visible) = gradient_of(
        (state.gaussians, state.network, state.poses, state.exposures, probe),
        state,
        dataset,
        index,
        views,
        recipe=recipe,
    )
    if views is None:
        height, width = dataset.sizes[index]
        stats = view_stats(d_probe, projected, width=width, height=height, margin=margin)
    else:
        stats = sum_view_stats(d_probe, projected, sizes=dataset.sizes[views], margin=margin)
    largest = {
        "num_intersections": rendered.num_intersections,
        "num_dropped": rendered.num_dropped,
        "num_visible": num_visible,
        "num_unsent": jnp.maximum(num_visible - recipe.max_sent, 0) if recipe.max_sent else jnp.int32(0),
        "blur_px": jnp.zeros_like(state.blur_px).at[index].set(terms["blur_px"]),
    }
    return tuple(grads), stats, terms, largest


def _device_gradients(state: TrainState, dataset: Dataset, indices, views, recipe: Recipe):
    """Sums over the views of this device, `indices`; `views` has those of all devices, or is None."""

    def add(total, drawn):
        grads, stats, terms, largest = _view_gradients(state, dataset, *drawn, recipe=recipe)
        old_grads, old_stats, old_terms, old_largest = total
        return (
            jax.tree.map(jnp.add, old_grads, grads),
            add_stats(old_stats, stats),
            jax.tree.map(jnp.add, old_terms, terms),
            jax.tree.map(jnp.maximum, old_largest, largest),
        ), None

    drawn = (indices, views)
    first = jax.tree.map(lambda x: x[0], drawn)
    if indices.shape[0] == 1:
        return _view_gradients(state, dataset, *first, recipe=recipe)
    # Start from zeros: starting from the gradients of the first view would compile them a second time.
    shapes = jax.eval_shape(lambda: _view_gradients(state, dataset, *first, recipe=recipe))
    return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), drawn)[0]


def _sum_over_devices(grads, stats: DensityStats, terms: dict, largest: dict, recipe: Recipe):
    """Gradients, density statistics, terms and largest values over the views of all devices.

    Where the Gaussians are split, gradients and statistics of those of this device are complete already.
    """
    if recipe.num_devices == 1:
        return grads, stats, terms, largest
    if recipe.shards.are_split:
        others, terms = psum((grads[1:], terms))
        return (grads[0], *others), stats, terms, pmax(largest)
    grads, terms = psum((grads, terms))
    sums = psum((stats.grad_norms, stats.counts))
    max_radii, largest = pmax((stats.max_radii, largest))
    return grads, DensityStats(sums[0], sums[1], max_radii), terms, largest


def train_step(
    rank: Int[Array, ""],
    state: TrainState,
    dataset: Dataset,
    stop: Int[Array, ""] | int = LAST_STEP,
    *,
    recipe: Recipe,
) -> tuple[TrainState, dict[str, Array]]:
    """Advances the state by one step, or returns it unchanged where the step cannot be trusted or `stop` is reached.

    Args:
      rank: number of this device, which selects its share of the views of the step.
      state: equal on all devices, but for the rows of the Gaussians where they are split. The caller has checked that all
        parameters are finite (`train_steps`); they stay so, because Adam's updates of finite gradients have a bound.
      dataset: equal on all devices.
      stop: the state does not advance beyond this step.
      recipe: static part.
    Returns:
      state, and metrics: mean loss terms, COUNTS (largest over views and devices), ok (0 or 1).
    """
    views = views_of_step(recipe, dataset.sizes.shape[0], state.seed, state.step, rank)
    return _step_on_views(views, state, dataset, stop, recipe=recipe)


def _step_on_views(
    views: StepViews, state: TrainState, dataset: Dataset, stop: Int[Array, ""] | int, *, recipe: Recipe
) -> tuple[TrainState, dict[str, Array]]:
    """A training step on these views; otherwise as `train_step`."""
    found = _device_gradients(state, dataset, *views, recipe)
    grads, stats, terms, largest = _sum_over_devices(*found, recipe=recipe)
    new_blur_px = largest.pop("blur_px")
    blur_px = jnp.where(new_blur_px > 0.0, new_blur_px, state.blur_px)
    grads, terms = jax.tree.map(lambda x: x / recipe.views_per_step, (grads, terms))

    d_gaussians, d_network, d_poses, d_exposures = grads
    updates: Any
    updates, gaussians_opt = recipe.optimizers.gaussians.update(d_gaussians, state.gaussians_opt)
    updates = dataclasses.replace(updates, means=dataset.extent * updates.means)
    network_updates, network_opt = recipe.optimizers.network.update(d_network, state.network_opt)
    poses, poses_opt = state.poses, state.poses_opt
    if dataset.pose_frame is not None:
        pose_updates, poses_opt = recipe.optimizers.poses.update(d_poses, poses_opt)
        poses = hold_gauge(cast(Any, optax.apply_updates(poses, pose_updates)), blur_px, dataset.pose_frame)
    exposures, exposures_opt = state.exposures, state.exposures_opt
    if recipe.learns_exposures:
        exposure_updates, exposures_opt = recipe.optimizers.exposures.update(d_exposures, exposures_opt)
        exposures = hold_brightness(cast(Any, optax.apply_updates(exposures, exposure_updates)), blur_px)
    advanced = dataclasses.replace(
        state,
        step=state.step + 1,
        gaussians=optax.apply_updates(cast(Any, state.gaussians), updates),
        network=optax.apply_updates(state.network, network_updates),
        gaussians_opt=gaussians_opt,
        network_opt=network_opt,
        poses=poses,
        poses_opt=poses_opt,
        exposures=exposures,
        exposures_opt=exposures_opt,
        blur_px=blur_px,
        density=add_stats(state.density, stats),
    )
    is_due, is_whole = state.step < stop, (largest["num_dropped"] == 0) & (largest["num_unsent"] == 0)
    # In a view |d sh_rest| is at most sqrt(7) |d sh_dc|, the ratio of the harmonics of degree 3 and 0, and no loss term reads
    # sh_rest: a finite d_sh_dc stands for both, and 45 numbers a Gaussian need no look.
    looked_at = [x for name, x in vars(d_gaussians).items() if name != "sh_rest"], *grads[1:]
    ok = _all(is_due, is_whole, jnp.isfinite(terms["total"]), *_finite(looked_at))
    ok = recipe.shards.all(ok)
    state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), advanced, state)
    return state, {**terms, **largest, "ok": ok.astype(jnp.int32)}


def _parameters(state: TrainState):
    return state.gaussians, state.network, state.poses, state.exposures


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
    """True if all parameters are finite."""
    return _all(*_finite(_parameters(state)))


def _all(*conditions: Bool[Array, ""]) -> Bool[Array, ""]:
    """True if all conditions hold; on a CPU computed as a reduction of one stacked array.

    XLA recomputes a chain of `&` inside each of the selects that use it: two fifths of the code of a step on a CPU. The barrier
    keeps XLA from turning the reduction back into that chain. On a GPU the selects are few, and the reduction two launches.
    """
    if current_platform() != "cpu":
        return functools.reduce(jnp.logical_and, conditions)
    return jnp.all(jax.lax.optimization_barrier(jnp.stack(conditions)))


def _finite(tree) -> list[Bool[Array, ""]]:
    """Conditions that all numbers and their squares are finite. (The loss does not show a Gaussian that is not: it is culled.)

    Arrays with equal numbers of rows are looked at together, and so are all small ones: each look is two launches on a GPU.
    """
    rows: dict[int, list] = {}
    for x in jax.tree.leaves(tree):
        rows.setdefault(x.shape[0] if x.size > FEW else 0, []).append(x)
    if small := rows.pop(0, []):
        rows[0] = [jnp.concatenate([x.ravel() for x in small])]
    return [jnp.all(functools.reduce(jnp.logical_and, map(_rows_are_finite, some))) for some in rows.values()]


def _rows_are_finite(x: Float[Array, "N *S"]) -> Bool[Array, "N"]:
    return jnp.all(jnp.abs(x) < LARGEST, axis=tuple(range(1, x.ndim)))


def train_steps(
    rank: Int[Array, ""],
    state: TrainState,
    dataset: Dataset,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    recipe: Recipe,
) -> tuple[TrainState, dict[str, Array]]:
    """Runs the steps from start to stop as one dispatch. A step that is not ok ends it; a state that is not at `start` stays.

    If the parameters of the state are not finite, no step is accepted; the metrics are those of a rejected step.

    The host may therefore queue a dispatch before it has read the metrics of the one that leads to `start`.

    Returns:
      state, and metrics: those of the last step, the loss terms averaged over the ok steps under the key "mean", and the step
      of the state under "step".
    """
    first, stop = state.step, jnp.where(state.step == start, stop, state.step)
    trusted_stop = jnp.where(recipe.shards.all(is_finite(state)), stop, first)

    views_at = functools.partial(views_of_step, recipe, dataset.sizes.shape[0], state.seed, rank=rank)
    # Where the number of steps is fixed, all their views are drawn at once: the order is a sort.
    ahead = jax.vmap(views_at)(first + jnp.arange(recipe.loop_length)) if recipe.loop_length else None

    def one_more(carry):
        state, metrics, sums = carry
        due = state.step < stop
        views = views_at(state.step) if ahead is None else jax.tree.map(lambda x: x[state.step - first], ahead)
        state, tried = _step_on_views(views, state, dataset, trusted_stop, recipe=recipe)
        metrics = jax.tree.map(lambda new, old: jnp.where(due, new, old), tried, metrics)
        sums = {name: total + jnp.where(tried["ok"] > 0, tried[name], 0.0) for name, total in sums.items()}
        return state, metrics, sums

    shapes = jax.eval_shape(lambda: train_step(rank, state, dataset, stop, recipe=recipe)[1])
    metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes) | {"ok": jnp.int32(1)}
    sums = {name: x for name, x in metrics.items() if name not in ("ok", *COUNTS)}
    carry = state, metrics, sums
    if recipe.loop_length:
        unpack = unpacker(carry)
        carry = unpack(jax.lax.fori_loop(0, recipe.loop_length, lambda _, x: pack(one_more(unpack(x))), pack(carry)))
    else:
        carry = jax.lax.while_loop(lambda c: (c[0].step < stop) & (c[1]["ok"] > 0), one_more, carry)
    state, metrics, sums = carry
    num_ok = jnp.maximum(state.step - first, 1)
    return state, {**metrics, "mean": jax.tree.map(lambda x: x / num_ok, sums), "step": state.step}


def eval_step(state: TrainState, camera: Camera, *, view: View) -> Rendered:
    """The sharp render of one camera, without the blur model."""
    return render(state.gaussians, state.alive, state.filter_3d, camera, view=view)
