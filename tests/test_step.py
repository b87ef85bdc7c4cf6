"""One training step: the views that it trains on, its terms and gradients, and steps that must not change the state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bags_jax import parallel
from bags_jax.config import read_config
from bags_jax.data.pyramid import make_dataset
from bags_jax.dispatch import make_recipe
from bags_jax.job import first_state, make_job
from bags_jax.ops.rasterize import buffer_size
from bags_jax.programs import largest_count, refresh_filter
from bags_jax.rendering import project_gaussians
from bags_jax.scene.confidence import SHARP_PX, view_confidence
from bags_jax.scene.initialize import with_optimizers
from bags_jax.scene.optimizer import Optimizers
from bags_jax.step import draw_views, eval_step, loss_fn, train_step, train_steps
from bags_jax.training import make_job_optimizers
from configs import procedural


@pytest.fixture(scope="module")
def job():
    config = procedural.get_config("motion,smoke")
    config.stages.scales, config.stages.stops, config.blur.kernel_sizes, config.blur.strides = (
        (0.5,),
        (1.0,),
        (3,),
        (1,),
    )
    config.num_devices, config.views_per_step, config.blur.warmup = 1, 1, 0.0
    config.max_gaussians = 512
    return make_job(read_config(config))


@pytest.fixture(scope="module")
def start(job):
    """State at step 0, dataset, and a recipe with a buffer that is large enough."""
    dataset = jax.tree.map(jnp.asarray, make_dataset(job.scene, job.stages[0].scale))
    optimizers = make_job_optimizers(job)
    state = refresh_filter(with_optimizers(first_state(job), optimizers), 0, dataset)
    recipe = functools.partial(make_recipe, job, optimizers, job.stages[0], dataset, num_devices=1)
    needed = largest_count(state, dataset, recipe(buffer=0).view)
    # Without a fixed trip count, which a GPU gets: the tests below run dispatches of any length.
    return state, dataset, dataclasses.replace(recipe(buffer=buffer_size(5 * needed)), loop_length=0)


def copies(tree):
    """A copy that may be donated, so that the original can be used again."""
    return jax.tree.map(jnp.copy, tree)


@pytest.fixture(scope="module")
def run(start):
    """Compiles each recipe once: (state, num_steps, recipe) -> state and metrics; `first` is the step of the first one."""
    compiled = {}

    def run(state, num_steps, recipe, first=None, dataset=start[1]):
        if recipe not in compiled:
            step = functools.partial(train_steps, recipe=recipe)
            compiled[recipe] = parallel.parallelize(step, num_args=3, num_devices=1)
        first = jnp.int32(state.step if first is None else first)
        full = parallel.without_empty(copies(state))
        full, metrics = compiled[recipe](parallel.ranks(1), full, dataset, first, first + num_steps)
        return parallel.with_empty(full, state), metrics

    return run


def same(a, b):
    """True if two pytrees are equal to the last bit."""
    flat = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in flat)


def assert_close(a, b, start):
    """Trees are equal but for rounding, measured by how far they have come from `start`: other programs of the same mathematics.

    Left out are the quaternions of round Gaussians: their gradient is rounding noise, which Adam enlarges to whole steps.
    """
    for (path, x), y, first in zip(
        jax.tree.leaves_with_path(a), jax.tree.leaves(b), jax.tree.leaves(start), strict=True
    ):
        if "quats" in jax.tree_util.keystr(path):
            continue
        if not jnp.issubdtype(y.dtype, jnp.floating):
            np.testing.assert_array_equal(x, y)
            continue
        x, y, first = (np.asarray(array, np.float64) for array in (x, y, first))
        moved = np.linalg.norm(y - first) or np.linalg.norm(y)
        assert np.linalg.norm(x - y) <= 0.05 * moved + 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("num_views", [4, 7])
def test_every_view_once_an_epoch(start, num_views, num_devices):
    recipe = dataclasses.replace(start[2], views_per_step=2, num_devices=num_devices)
    draw = jax.jit(lambda step, rank: draw_views(recipe, num_views, jnp.int32(0), step, rank))
    steps = [[draw(jnp.int32(s), jnp.int32(r)) for r in range(num_devices)] for s in range(num_views)]
    assert all(len(np.concatenate(ranks)) == 2 for ranks in steps)
    drawn = np.concatenate([np.concatenate(ranks) for ranks in steps])  # two epochs
    first, second = drawn[:num_views], drawn[num_views:]
    assert sorted(first) == sorted(second) == list(range(num_views))
    assert list(first) != list(second)  # another order


def test_devices_take_disjoint_views_of_the_same_order(start):
    one = dataclasses.replace(start[2], views_per_step=2, num_devices=1)
    two = dataclasses.replace(start[2], views_per_step=2, num_devices=2)
    for step in range(6):
        whole = draw_views(one, 8, jnp.int32(0), jnp.int32(step), jnp.int32(0))
        parts = [draw_views(two, 8, jnp.int32(0), jnp.int32(step), jnp.int32(rank)) for rank in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert len(set(np.concatenate(parts).tolist())) == 2


def test_other_seeds_draw_other_views(start):
    draw = lambda seed, step: draw_views(start[2], 16, jnp.int32(seed), jnp.int32(step), jnp.int32(0))
    orders = [[int(draw(seed, s)[0]) for s in range(16)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_steps_lower_the_loss(start, run):
    state, _, recipe = start
    _, before = run(state, 1, recipe)
    trained, after = run(state, 40, recipe)
    assert int(trained.step) == 40 and int(after["ok"]) == 1
    _, end = run(trained, 4, recipe)  # all views
    assert float(end["mean"]["total"]) < 0.8 * float(before["total"])
    assert float(end["mean"]["psnr"]) > float(before["psnr"]) + 1.0
    assert float(jnp.sum(trained.density.counts)) > 0


def test_density_statistics_do_not_depend_on_the_other_views(start):
    """A view of 16 x 12 px alone, and with another of 12 x 16: both are then padded to 16 x 16, with Gaussians in the padding."""
    state, dataset, recipe = start
    # Small ones: the size of a Gaussian far outside the image depends on the size of the canvas.
    small = dataclasses.replace(state.gaussians, log_scales=state.gaussians.log_scales - 2.0)
    height, width = dataset.images.shape[1:3]
    alone = jax.tree.map(lambda x: x[:1] if x.ndim else x, dataset)
    lowered = dataclasses.replace(alone.cameras, K=alone.cameras.K.at[0, 1, 2].add(0.2 * height))
    alone = dataclasses.replace(alone, cameras=lowered)
    square = jnp.pad(alone.images, ((0, 0), (0, width - height), (0, 0), (0, 0)))
    beside = dataclasses.replace(
        jax.tree.map(lambda x: jnp.concatenate([x, x]) if x.ndim else x, alone),
        images=jnp.concatenate([square, square.swapaxes(1, 2)]),
        sizes=jnp.array([[height, width], [width, height]]),
    )
    step = next(s for s in range(2) if draw_views(recipe, 2, state.seed, jnp.int32(s), jnp.int32(0))[0] == 0)
    state = dataclasses.replace(state, step=jnp.int32(step), gaussians=small)
    plain = dataclasses.replace(recipe, model=None)
    found = []
    for views in (alone, beside):
        view = dataclasses.replace(plain.view, height=views.images.shape[1])
        step = jax.jit(functools.partial(train_step, recipe=dataclasses.replace(plain, view=view)))
        after, metrics = step(jnp.int32(0), state, views)
        assert int(metrics["ok"]) == 1
        found.append(after.density)
    one, two = found
    camera = jax.tree.map(lambda x: x[0], alone.cameras)
    projected = project_gaussians(state.gaussians, state.alive, state.filter_3d, camera, plain.view)
    np.testing.assert_array_equal(one.counts, projected.radii_px[:, 0] > 0)
    assert 0 < float(jnp.sum(one.counts)) < int(jnp.sum(state.alive))
    np.testing.assert_array_equal(two.counts, one.counts)
    np.testing.assert_allclose(two.grad_norms, one.grad_norms, rtol=1e-3, atol=1e-6 * float(jnp.max(one.grad_norms)))
    np.testing.assert_allclose(two.max_radii, one.max_radii, rtol=1e-5)


def test_total_is_the_weighted_sum_of_the_terms(start, run):
    state, _, recipe = start
    _, metrics = run(state, 1, recipe)
    loss = recipe.loss
    expected = (
        (1 - loss.ssim) * metrics["l1"]
        + loss.ssim * metrics["dssim"]
        + sum(getattr(loss, name) * metrics[name] for name in ("mask", "centroid", "width_tv", "sharp"))
    )
    np.testing.assert_allclose(metrics["total"], expected, rtol=1e-6)
    assert 0 < float(metrics["mask"]) < 1 and loss.width_tv > 0 < float(metrics["width_tv"])
    for name in ("l1", "dssim", "mask", "total"):
        np.testing.assert_allclose(metrics["mean"][name], metrics[name], rtol=1e-6)


@pytest.mark.parametrize(
    "seen_px, step, penalised", [(0.3, 5, True), (0.3, 4, False), (1.6, 5, False), (0.0, 5, False)]
)
def test_blur_of_a_sharp_capture_is_penalised_once_it_is_known(start, run, seen_px, step, penalised):
    state, _, recipe = start
    loss = dataclasses.replace(recipe.loss, sharp=1e-3, sharp_start=5, sharp_view_start=9)
    recipe = dataclasses.replace(recipe, loss=loss)
    state = dataclasses.replace(state, step=jnp.int32(step), blur_px=jnp.full_like(state.blur_px, seen_px))
    _, metrics = run(state, 1, recipe)
    assert (0 < float(metrics["sharp"]) < 1) == penalised and (float(metrics["sharp"]) == 0.0) != penalised


@pytest.mark.parametrize("own_px, step, penalised", [(1.1, 7, True), (1.1, 6, False), (1.3, 7, False), (0.0, 7, False)])
def test_blur_of_a_sharp_view_of_a_blurry_capture_is_penalised_later(start, run, own_px, step, penalised):
    """Only that view is penalised."""
    state, dataset, recipe = start
    loss = dataclasses.replace(recipe.loss, sharp=1e-3, sharp_start=5, sharp_view_start=7)
    recipe, step = dataclasses.replace(recipe, loss=loss), jnp.int32(step)
    own = draw_views(recipe, dataset.sizes.shape[0], state.seed, step, jnp.int32(0))[0]
    for view, expected in ((own, penalised), (own - 1, False)):
        blur_px = jnp.full_like(state.blur_px, 2.0).at[view].set(own_px)
        _, metrics = run(dataclasses.replace(state, step=step, blur_px=blur_px), 1, recipe)
        assert (0 < float(metrics["sharp"]) < 1) == expected and (float(metrics["sharp"]) == 0.0) != expected


def test_pose_term_is_relative_to_the_blur_of_the_view(job, start):
    """Six corrections of 0.5 px, in units of a blur of 0.5 px and of SHARP_PX."""
    state, dataset, recipe = start
    dataset = dataclasses.replace(dataset, pose_frame=job.pose_frame)
    poses, blur_px = jnp.full_like(state.poses, 0.5), jnp.full_like(state.blur_px, 0.5)
    trained = state.gaussians, state.network, poses, state.exposures, jnp.zeros((state.alive.shape[0], 2))
    pose_term = jax.jit(
        lambda trained, state: loss_fn(trained, state, dataset, jnp.int32(0), recipe=recipe)[1][0]["poses"]
    )
    found = pose_term(trained, dataclasses.replace(state, blur_px=blur_px))
    np.testing.assert_allclose(found, 6 * 0.25 / (0.25 + SHARP_PX**2), rtol=1e-5)


def test_means_move_in_shares_of_the_extent(start, run):
    """Twice the extent doubles the steps of the means, and nothing else: Adam does not depend on the size of gradients."""
    state, dataset, recipe = start
    one, two = (run(state, 1, recipe, dataset=dataclasses.replace(dataset, extent=jnp.float32(x)))[0] for x in (1, 2))
    moved, further = (after.gaussians.means - state.gaussians.means for after in (one, two))
    rounding = 2 * np.finfo(np.float32).eps * float(jnp.max(jnp.abs(state.gaussians.means)))
    assert float(jnp.max(jnp.abs(moved))) > 100 * rounding
    np.testing.assert_allclose(further, 2 * moved, rtol=0, atol=rounding)
    still = lambda after: dataclasses.replace(after, gaussians=dataclasses.replace(after.gaussians, means=0))
    assert same(still(one), still(two))


def test_blurry_views_count_less_for_the_scene_and_the_same_for_the_blur_model(start, run):
    """Compares the gradients that the optimizers get: a view with a blur of 0.3 or 3 px, the others with 3 px."""
    state, dataset, recipe = start
    keep = optax.trace(decay=0.0)  # its state is the gradient
    optimizers = Optimizers(keep, keep, keep, keep)
    loss = dataclasses.replace(recipe.loss, confidence=1.0, sharp=0.0)
    recipe = dataclasses.replace(recipe, loss=loss, optimizers=optimizers)
    state = dataclasses.replace(
        state,
        gaussians_opt=keep.init(state.gaussians),
        network_opt=keep.init(state.network),
        poses_opt=keep.init(state.poses),
        exposures_opt=keep.init(state.exposures),
    )
    own = draw_views(recipe, dataset.sizes.shape[0], state.seed, state.step, jnp.int32(0))[0]
    blurry = jnp.full_like(state.blur_px, 3.0)
    alike, sharp = (
        run(dataclasses.replace(state, blur_px=blur_px), 1, recipe)[0] for blur_px in (blurry, blurry.at[own].set(0.3))
    )
    confidence = float(view_confidence(blurry.at[own].set(0.3), 1.0)[own])
    assert confidence > 1.5
    for counted, plain in zip(*(jax.tree.leaves(after.gaussians_opt.trace) for after in (sharp, alike)), strict=True):
        np.testing.assert_allclose(counted, confidence * plain, rtol=1e-5)
    assert any(x.any() for x in jax.tree.leaves(alike.network_opt))
    assert same((sharp.network_opt, sharp.density), (alike.network_opt, alike.density))


def test_result_does_not_depend_on_the_dispatches(start, run):
    """Five steps in one dispatch equal five dispatches of one step, to the last bit."""
    state, _, recipe = start
    at_once, _ = run(state, 5, recipe)
    for _ in range(5):
        state, _ = run(state, 1, recipe)
    assert same(state, at_once)


def test_too_small_buffer_changes_nothing_and_is_reported(start, run):
    state, _, recipe = start
    small = dataclasses.replace(recipe, view=dataclasses.replace(recipe.view, max_intersections=8))
    after, metrics = run(state, 5, small)
    assert int(metrics["num_dropped"]) > 0 and int(metrics["ok"]) == 0
    assert int(metrics["num_intersections"]) == int(metrics["num_dropped"]) + 8
    assert same(after, state)


@pytest.mark.parametrize("part", ["network", "colour"])
def test_parameters_that_are_not_finite_reject_the_step(start, run, part):
    state, _, recipe = start
    if part == "network":
        poisoned = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state.network)
        state = dataclasses.replace(state, network=poisoned)
    else:
        sh_dc = state.gaussians.sh_dc.at[:].set(jnp.nan)
        state = dataclasses.replace(state, gaussians=dataclasses.replace(state.gaussians, sh_dc=sh_dc))
    after, metrics = run(state, 3, recipe)
    assert int(metrics["ok"]) == 0 and int(metrics["num_dropped"]) == 0
    assert same(after, state)


def test_evaluation_is_the_sharp_render(start):
    """Evaluation does not use the blur model."""
    state, dataset, recipe = start
    camera = jax.tree.map(lambda x: x[0], dataset.cameras)
    sharp = jax.jit(lambda state: eval_step(state, camera, view=recipe.view).image)
    other = dataclasses.replace(state, network=jax.tree.map(lambda x: x + 1.0, state.network))
    np.testing.assert_array_equal(sharp(state), sharp(other))


@pytest.mark.parametrize("loop_length", [0, 8])
def test_dispatch_leaves_a_state_at_another_step_alone(start, run, loop_length):
    """Steps are queued before it is known whether the steps before them were ok."""
    state, _, recipe = start
    after, metrics = run(state, 3, dataclasses.replace(recipe, loop_length=loop_length), first=2)
    assert same(after, state) and int(metrics["step"]) == 0


@pytest.mark.parametrize("num_steps", [0, 3, 8])
def test_loop_of_known_length_takes_the_same_steps(start, run, num_steps):
    state, _, recipe = start
    expected, expected_metrics = run(state, num_steps, recipe)
    after, metrics = run(state, num_steps, dataclasses.replace(recipe, loop_length=8))
    assert int(after.step) == num_steps
    assert_close((after, metrics), (expected, expected_metrics), start=(state, expected_metrics))


@pytest.mark.slow
def test_loop_of_known_length_ends_at_a_step_whose_buffer_is_too_small(start, run):
    """The third view needs one intersection more than fit into the buffer."""
    state, dataset, recipe = start
    buffer = largest_count(state, dataset, recipe.view) - 1
    small = dataclasses.replace(recipe, view=dataclasses.replace(recipe.view, max_intersections=buffer))
    expected, expected_metrics = run(state, 8, small)
    after, metrics = run(state, 8, dataclasses.replace(small, loop_length=8))
    assert int(metrics["ok"]) == 0 < int(metrics["num_dropped"]) == int(expected_metrics["num_dropped"])
    assert 0 < int(after.step) < 8
    assert_close((after, metrics), (expected, expected_metrics), start=(state, expected_metrics))
