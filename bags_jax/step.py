"""One step of training: render, blur, compare, differentiate, update. Pure and un-mapped: parallel.py maps it.

A step is a function of the state alone: the views that it looks at follow from `state.step`, and a step that cannot be
trusted (the tile buffer was too small, or loss, gradients or parameters are not finite) returns the state as it came. Whoever runs it may
therefore look at the metrics later, enlarge the buffer, and run again: nothing is lost and nothing is done twice.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from bags_jax import losses
from bags_jax.blur_model.proposal_network import BlurProposalNetwork, normalize_depth
from bags_jax.blur_model.statistics import masked_widths, mean_over, mean_squared_centroid, shares, view_statistics
from bags_jax.geometry import LARGEST
from bags_jax.parallel import pmax, psum
from bags_jax.rendering import Rendered, View, render, render_blurred
from bags_jax.scene.confidence import blur_price, looks_sharp, pose_trust, sharp_views, view_confidence
from bags_jax.scene.density import add_stats, view_stats
from bags_jax.scene.optimizer import Optimizers
from bags_jax.scene.pose_refinement import corrected_camera, hold_gauge
from bags_jax.schedule import Stage
from bags_jax.spherical_harmonics import MAX_DEGREE
from bags_jax.structs import BlurMoments, Camera, Dataset, DensityStats, Gaussians, TrainState

FEW = 1 << 16  # numbers of a small array
LAST_STEP = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of the loss terms. A variation of the render of weight 0 is not computed; what the blur model shows is always told."""

    ssim: float = 0.2  # of 1 - SSIM, against 1 minus this for L1
    mask: float = 1e-4
    centroid: float = 0.0  # mean over the image of mask times squared kernel centroid, per px^2
    width_tv: float = 0.0  # total variation of the kernels' widths, px of width per px of image, mean over the image
    sharp: float = 0.0  # price of a view's blur, 0 to 1, where the capture looks sharp, or the view beside the others
    sharp_start: int = 0  # step from which it is asked of a capture that looks sharp: before, nobody knows the blur
    sharp_view_start: int = 0  # of views that are sharp beside the others: real blur of half a pixel is found late
    poses: float = 0.0  # squared correction of the view's pose, in units of the view's blur
    confidence: float = 0.0  # not a term: see view_confidence
    depth_tv: float = 0.0
    rgb_tv: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything static in a training step."""

    stage: Stage
    view: View
    objective: Objective
    optimizers: Optimizers
    network: BlurProposalNetwork | None  # None: plain splatting
    views_per_step: int
    num_devices: int
    sh_every: int  # steps after which one more degree of SH is in use; 0: all from the start
    # Rounds of the loop of a dispatch; those too many take their time and have no effect. A GPU waits for its host before each
    # round of a loop whose end is computed. 0: it is, and the loop ends where it has to.
    loop_length: int = 0


def network_name(index: int) -> str:
    """Key of a blur network in TrainState.network."""
    return ("first", "second")[index]


def draw_views(
    recipe: Recipe, num_views: int, seed: Int[Array, ""], step: Int[Array, ""], rank: Int[Array, ""]
) -> Int[Array, "B"]:
    """The views of one device at one step: a new permutation of all views each time all have been seen."""
    per_device = recipe.views_per_step // recipe.num_devices
    places = step * recipe.views_per_step + rank * per_device + jnp.arange(per_device)

    def view_at(place):
        order = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), place // num_views), num_views)
        return order[place % num_views]

    return jax.vmap(view_at)(places)


def training_camera(dataset: Dataset, poses: Float[Array, "V 6"], index: Int[Array, ""]) -> Camera:
    """The camera of one training view, its pose corrected where poses are refined."""
    camera = jax.tree.map(lambda x: x[index], dataset.cameras)
    return camera if dataset.pose_frame is None else corrected_camera(camera, poses[index], dataset.pose_frame)


def loss_fn(
    trained: tuple[Gaussians, dict, Float[Array, "V 6"], Float[Array, "N 2"]],
    state: TrainState,
    dataset: Dataset,
    index: Int[Array, ""],
    *,
    recipe: Recipe,
):
    """Loss of one training view.

    Args:
      trained: what is differentiated: Gaussians, network parameters, corrections of the poses, and the probe of the
        projected means (zeros).
      state: the rest of the state.
      dataset: training views at the stage's scale.
      index: the view.
      recipe: static part.
    Returns:
      loss, and (terms, Rendered): all terms by name, unweighted, with the PSNR to the photograph.
    """
    gaussians, params, poses, probe = trained
    sh_degree = state.step // recipe.sh_every if recipe.sh_every else MAX_DEGREE
    camera = training_camera(dataset, poses, index)
    rendered = render(
        gaussians, state.alive, state.filter_3d, camera, view=recipe.view, sh_degree=sh_degree, probe_px=probe
    )
    photo = dataset.images[index].astype(jnp.float32) / 255.0
    height, width = dataset.sizes[index]
    valid = (jnp.arange(recipe.view.height) < height)[:, None] & (jnp.arange(recipe.view.width) < width)[None, :]
    sharp = rendered.inside()
    image, blurred, blur_weights, blur_px = sharp.image, {}, {}, jnp.zeros(())
    if recipe.network is not None and recipe.stage.kernel_size:
        own = params[network_name(recipe.stage.network)]
        image, found = render_blurred(recipe.network, own, index, rendered, head=recipe.stage.head)
        stride = recipe.network.stride(recipe.stage.head)
        share = shares(valid, stride)
        blurred, blur_weights = _blur_terms(found, share, stride, state, index, recipe)
        blur_px = view_statistics(found, share).rms_width / recipe.stage.scale
    terms, weights = _terms(image, photo, valid, sharp, recipe.objective)
    terms, weights = terms | blurred, weights | blur_weights
    if dataset.pose_frame is not None:
        terms["poses"] = pose_trust(state.blur_px[index]) * jnp.sum(poses[index] ** 2)
        weights["poses"] = recipe.objective.poses
    total = sum(weights[name] * term for name, term in terms.items() if weights[name])
    terms["blur_px"] = blur_px
    terms["psnr"] = losses.psnr_from_mse(losses.mse(image, photo, valid))
    return total, ({"total": total, **terms}, rendered)


def _blur_terms(
    found: BlurMoments,
    share: Float[Array, "h w"],
    stride: int,
    state: TrainState,
    index: Int[Array, ""],
    recipe: Recipe,
) -> tuple[dict, dict]:
    """Terms of the blur model, and their weights.

    Args:
      found: the blur of a view.
      share: what part of the photograph each block is, blur.shares.
      stride: side of the blocks that share a kernel, px.
      state, index, recipe: as in loss_fn.
    """
    objective, widths = recipe.objective, masked_widths(found)
    closes = looks_sharp(state.blur_px) & (state.step >= objective.sharp_start)
    closes |= sharp_views(state.blur_px)[index] & (state.step >= objective.sharp_view_start)
    variance = mean_over(widths**2, share) / recipe.stage.scale**2
    terms = {
        "mask": mean_over(found.mask, share),
        "centroid": mean_squared_centroid(found, share),
        "width_tv": losses.total_variation(widths[..., None], share > 0.0) / stride,
        "sharp": jnp.where(closes, blur_price(variance, state.blur_px), 0.0),
    }
    weights = {
        "mask": objective.mask,
        "centroid": objective.centroid,
        "width_tv": objective.width_tv,
        "sharp": objective.sharp,
    }
    return terms, weights


def _terms(image, photo, valid, sharp: Rendered, objective: Objective) -> tuple[dict, dict]:
    """Terms that need no blur model, and their weights."""
    terms = {"l1": losses.l1(image, photo, valid), "dssim": 1.0 - losses.ssim(image, photo, valid)}
    weights = {"l1": 1.0 - objective.ssim, "dssim": objective.ssim}
    if objective.depth_tv:
        terms["depth_tv"] = losses.total_variation(normalize_depth(sharp.depth)[..., None], valid)
        weights["depth_tv"] = objective.depth_tv
    if objective.rgb_tv:
        terms["rgb_tv"] = losses.total_variation(sharp.image, valid)
        weights["rgb_tv"] = objective.rgb_tv
    return terms, weights


def _view_gradients(state: TrainState, dataset: Dataset, index, recipe: Recipe):
    """Gradients, density statistics and metrics of one view."""
    probe = jnp.zeros((state.alive.shape[0], 2))
    gradient_of = jax.grad(loss_fn, has_aux=True)
    (*grads, d_probe), (terms, rendered) = gradient_of(
        (state.gaussians, state.network, state.poses, probe), state, dataset, index, recipe=recipe
    )
    height, width = dataset.sizes[index]
    stats = view_stats(d_probe, rendered.projected, width=width, height=height, margin=recipe.view.margin)
    largest = {
        "num_intersections": rendered.num_intersections,
        "num_dropped": rendered.num_dropped,
        "blur_px": jnp.zeros_like(state.blur_px).at[index].set(terms["blur_px"]),
    }
    grads[0] = jax.tree.map(lambda g: g * view_confidence(state.blur_px, recipe.objective.confidence)[index], grads[0])
    return tuple(grads), stats, terms, largest


def _device_gradients(state: TrainState, dataset: Dataset, indices, recipe: Recipe):
    """Sums over the views of this device."""

    def add(total, index):
        grads, stats, terms, largest = _view_gradients(state, dataset, index, recipe)
        old_grads, old_stats, old_terms, old_largest = total
        return (
            jax.tree.map(jnp.add, old_grads, grads),
            add_stats(old_stats, stats),
            jax.tree.map(jnp.add, old_terms, terms),
            jax.tree.map(jnp.maximum, old_largest, largest),
        ), None

    if indices.shape[0] == 1:
        return _view_gradients(state, dataset, indices[0], recipe)
    # From zeros, not from the first view: its gradients would be compiled a second time.
    shapes = jax.eval_shape(lambda: _view_gradients(state, dataset, indices[0], recipe))
    return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), indices)[0]


def _sum_over_devices(stats: DensityStats, largest: dict, num_devices: int):
    """Statistics and largest values of the views of all devices."""
    if num_devices == 1:
        return stats, largest
    sums = psum((stats.grad_norms, stats.counts))
    max_radii, largest = pmax((stats.max_radii, largest))
    return DensityStats(sums[0], sums[1], max_radii), largest


def train_step(
    rank: Int[Array, ""],
    state: TrainState,
    dataset: Dataset,
    stop: Int[Array, ""] | int = LAST_STEP,
    *,
    recipe: Recipe,
) -> tuple[TrainState, dict[str, Array]]:
    """Takes the state one step further, or leaves it as it is where the step cannot be trusted, or is not wanted.

    Args:
      rank: number of this device; it takes its own part of the step's views.
      state: the same on all devices.
      dataset: the same on all devices.
      stop: from this step on nothing is done.
      recipe: static part.
    Returns:
      state, and metrics: mean loss terms, num_intersections (largest of the views), num_dropped, ok (0 or 1).
    """
    indices = draw_views(recipe, dataset.sizes.shape[0], state.seed, state.step, rank)
    grads, stats, terms, largest = _device_gradients(state, dataset, indices, recipe)
    grads, terms = psum((grads, terms)) if recipe.num_devices > 1 else (grads, terms)
    stats, largest = _sum_over_devices(stats, largest, recipe.num_devices)
    seen_blur = largest.pop("blur_px")
    blur_px = jnp.where(seen_blur > 0.0, seen_blur, state.blur_px)
    grads, terms = jax.tree.map(lambda x: x / recipe.views_per_step, (grads, terms))

    d_gaussians, d_network, d_poses = grads
    updates: Any
    updates, gaussians_opt = recipe.optimizers.gaussians.update(d_gaussians, state.gaussians_opt)
    updates = dataclasses.replace(updates, means=dataset.extent * updates.means)
    network_updates, network_opt = recipe.optimizers.network.update(d_network, state.network_opt)
    poses, poses_opt = state.poses, state.poses_opt
    if dataset.pose_frame is not None:
        pose_updates, poses_opt = recipe.optimizers.poses.update(d_poses, poses_opt)
        poses = hold_gauge(cast(Any, optax.apply_updates(poses, pose_updates)), blur_px, dataset.pose_frame)
    advanced = dataclasses.replace(
        state,
        step=state.step + 1,
        gaussians=optax.apply_updates(cast(Any, state.gaussians), updates),
        network=optax.apply_updates(state.network, network_updates),
        gaussians_opt=gaussians_opt,
        network_opt=network_opt,
        poses=poses,
        poses_opt=poses_opt,
        blur_px=blur_px,
        density=add_stats(state.density, stats),
    )
    # Of what goes into the update, not of what comes out of it: else Adam would pass over memory twice.
    is_due, is_whole = state.step < stop, largest["num_dropped"] == 0
    ok = _all(is_due, is_whole, jnp.isfinite(terms["total"]), *_finite((grads, _parameters(state))))
    state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), advanced, state)
    return state, {**terms, **largest, "ok": ok.astype(jnp.int32)}


def _parameters(state: TrainState):
    return state.gaussians, state.network, state.poses


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
    """Whether all that is learned is. A step asks this of the state it starts from: of the last one nobody else does."""
    return _all(*_finite(_parameters(state)))


def _all(*conditions: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether all hold, as a reduction of an array: XLA does it once, and a chain of ands anew in every array that is selected.

    That was two fifths of a step's code on a CPU. Without the barrier XLA makes that chain of the reduction.
    """
    return jnp.all(jax.lax.optimization_barrier(jnp.stack(conditions)))


def _finite(tree) -> list[Bool[Array, ""]]:
    """Whether numbers are finite, and their squares: a Gaussian that is not is culled, so that the loss would not show it."""
    leaves = jax.tree.leaves(tree)
    # The many small arrays of the network are looked at together: each look is a launch on a GPU.
    looks = [x for x in leaves if x.size > FEW] + [jnp.concatenate([x.ravel() for x in leaves if x.size <= FEW])]
    return [jnp.all(jnp.abs(x) < LARGEST) for x in looks]


def train_steps(
    rank: Int[Array, ""],
    state: TrainState,
    dataset: Dataset,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    recipe: Recipe,
) -> tuple[TrainState, dict[str, Array]]:
    """The steps from start to stop in one dispatch; none beyond one that is not ok, and none if the state is not at start.

    So it is safe to ask for before the steps that lead to start have been looked at.

    Returns:
      state, and metrics: those of the last step that was tried, with the loss terms averaged over the steps that were ok
      under the key "mean", and "step", how far the state has come.
    """
    first, stop = state.step, jnp.where(state.step == start, stop, state.step)

    def one_more(carry):
        state, metrics, sums = carry
        due = state.step < stop
        state, tried = train_step(rank, state, dataset, stop, recipe=recipe)
        metrics = jax.tree.map(lambda new, old: jnp.where(due, new, old), tried, metrics)
        sums = {name: total + jnp.where(tried["ok"] > 0, tried[name], 0.0) for name, total in sums.items()}
        return state, metrics, sums

    shapes = jax.eval_shape(lambda: train_step(rank, state, dataset, stop, recipe=recipe)[1])
    metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes) | {"ok": jnp.int32(1)}
    sums = {name: x for name, x in metrics.items() if name not in ("ok", "num_intersections", "num_dropped")}
    carry = state, metrics, sums
    if recipe.loop_length:
        carry = jax.lax.fori_loop(0, recipe.loop_length, lambda _, carry: one_more(carry), carry)
    else:
        carry = jax.lax.while_loop(lambda c: (c[0].step < stop) & (c[1]["ok"] > 0), one_more, carry)
    state, metrics, sums = carry
    taken = jnp.maximum(state.step - first, 1)
    return state, {**metrics, "mean": jax.tree.map(lambda x: x / taken, sums), "step": state.step}


def eval_step(state: TrainState, camera: Camera, *, view: View) -> Rendered:
    """The sharp picture of one camera: the blur model has no part in it."""
    return render(state.gaussians, state.alive, state.filter_3d, camera, view=view)
