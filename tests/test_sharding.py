"""Gaussians that are split over devices: training equals that with all of them on every device, whatever is exchanged."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import parallel, programs, shards
from bags_jax.checkpoint import Checkpoints
from bags_jax.config import read_config
from bags_jax.data.pyramid import make_dataset
from bags_jax.dispatch import check_shards, make_recipe, make_shards
from bags_jax.errors import UserError
from bags_jax.job import first_state, make_job
from bags_jax.memory import forecast_memory
from bags_jax.programs import apply, control_density, largest_count, largest_counts, refresh_filter
from bags_jax.rendering import keep_visible, see
from bags_jax.run import open_run
from bags_jax.scene.density import Thresholds
from bags_jax.scene.initialize import with_optimizers
from bags_jax.scene.rows import grow, join_rows, row_axes, split_rows, ungrow
from bags_jax.shards import WHOLE, Shards
from bags_jax.step import train_step, train_steps
from bags_jax.training import make_job_optimizers, train
from configs import procedural
from tests.test_density import assert_same, make_state
from tests.test_step import assert_close

TWO = Shards(2)
ROWS, STEPS, DENSITY_STEP = 512, 15, 12  # few steps: Adam enlarges differences of rounding later


def make_config(shard_gaussians):
    """Fifteen steps of one stage on two devices; density control after 12."""
    config = procedural.get_config("motion,smoke")
    config.stages.scales, config.stages.stops = (0.5,), (1.0,)
    config.blur.kernel_sizes, config.blur.strides = (3,), (1,)
    config.num_steps, config.blur.warmup, config.max_gaussians = STEPS, 0.0, ROWS
    config.density.every, config.density.start, config.density.stop = DENSITY_STEP, DENSITY_STEP, STEPS
    config.density.grad_threshold = config.density.grad_threshold_early = 2e-5
    config.optim.quats = 0.0  # for a round Gaussian the gradient is rounding noise, which Adam enlarges to a whole step
    config.log_every, config.num_devices, config.views_per_step, config.pictures = 1, 2, 2, False
    config.shard_gaussians = shard_gaussians
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Working directory and last state, with whole and with split Gaussians."""
    folders = {split: tmp_path_factory.mktemp(f"split_{split}") for split in (False, True)}
    return {split: (folder, train(make_config(split), folder)) for split, folder in folders.items()}


def test_split_training_equals_whole(runs):
    """Loss curve and parameters to 1e-5, over one density control step that splits Gaussians."""
    whole, split = ([json.loads(line) for line in (runs[s][0] / "metrics.jsonl").open()] for s in (False, True))
    assert len(whole) == len(split) == STEPS and whole[-1]["num_gaussians"] > whole[0]["num_gaussians"]
    for a, b in zip(whole, split, strict=True):
        assert a["num_gaussians"] == b["num_gaussians"] and a["num_intersections"] == b["num_intersections"]
        for name in ("total", "l1", "dssim", "mask", "psnr"):
            np.testing.assert_allclose(
                b[f"train/{name}"], a[f"train/{name}"], rtol=1e-5, err_msg=f"{name}, {a['step']}"
            )
    a, b = (runs[s][1] for s in (False, True))
    np.testing.assert_array_equal(a.alive, b.alive)
    np.testing.assert_array_equal(a.density.counts, b.density.counts)
    for name in ("means", "log_scales", "sh_dc", "logit_opacities"):
        # Adam divides by the size of the gradient: where it is rounding noise, the step is a whole one. Rare.
        apart = np.abs(np.asarray(getattr(a.gaussians, name)) - np.asarray(getattr(b.gaussians, name)))
        assert np.mean(apart < 1e-5) > 0.95 and apart.max() < 1e-3, (name, np.mean(apart < 1e-5), apart.max())
    np.testing.assert_allclose(a.poses, b.poses, atol=1e-5)
    for x, y in zip(jax.tree.leaves(a.network), jax.tree.leaves(b.network), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_checkpoint_of_split_gaussians_is_whole(runs):
    """It has rows as any other: the state that `train` returns, opened by one device."""
    workdir, state = runs[True]
    job = make_job(read_config(make_config(False)))
    template = jax.eval_shape(lambda: with_optimizers(first_state(job), make_job_optimizers(job)))
    with Checkpoints(workdir, create=False) as checkpoints:
        restored = checkpoints.restore(template)
    assert restored.alive.shape == (ROWS,)
    assert_same(restored, state)
    assert open_run(workdir).state.gaussians.means.shape == (ROWS, 3)


def test_run_goes_on_with_whole_gaussians(runs):
    """config.shard_gaussians may change when a run goes on; here nothing is left to train."""
    assert int(train(make_config(False), runs[True][0]).step) == STEPS


# One step, without a blur model, of a state that has been split.


@pytest.fixture(scope="module")
def setting():
    """Job, whole state, dataset and function that makes the recipe for shards and max_sent."""
    config = make_config(True)
    config.blur.enabled, config.max_gaussians = False, 201
    job = make_job(read_config(config))
    optimizers = make_job_optimizers(job)
    dataset = make_dataset(job.scene, 0.5, extent=job.extent, near_plane=job.near_plane)
    dataset = dataclasses.replace(dataset, pose_frame=job.pose_frame)
    state = with_optimizers(first_state(job), optimizers)
    alive = jnp.asarray(np.random.default_rng(0).uniform(size=201) < 0.6)
    state = refresh_filter(dataclasses.replace(state, alive=state.alive & alive), 0, dataset)

    def recipe(shards, max_sent=0):
        made = make_recipe(job, optimizers, job.stages[-1], dataset, buffer=4096, num_devices=2)
        return dataclasses.replace(made, shards=shards, max_sent=max_sent)

    return job, state, dataset, recipe


def step_once(state, dataset, recipe):
    """One step on two devices: a whole state and metrics."""
    return on_two_devices(train_step, state, dataset, recipe)


def on_two_devices(function, state, dataset, recipe, *steps):
    """`train_step`, or `train_steps` with first and last step, on two devices: a whole state and metrics."""
    shards = recipe.shards
    own = split_rows(state, shards) if shards.are_split else state
    own = parallel.without_empty(jax.tree.map(jnp.array, own))  # copies, which are donated
    axes = row_axes(own) if shards.are_split else None
    step = functools.partial(function, recipe=recipe)
    mapped = parallel.parallelize(step, num_args=1 + len(steps), num_devices=2, num_shards=shards.num, axes=axes)
    after, metrics = mapped(parallel.ranks(2), own, dataset, *steps)
    after = parallel.with_empty(after, split_rows(state, shards) if shards.are_split else state)
    return join_rows(after, max_rows=len(state.alive)) if shards.are_split else after, jax.device_get(metrics)


@pytest.mark.slow
def test_one_step_with_visible_gaussians_alone(setting):
    """Gradients (the first moments of Adam), statistics and metrics. Where the buffer is too small, nothing changes."""
    _, state, dataset, recipe = setting
    whole, expected = step_once(state, dataset, recipe(WHOLE))
    split, sent = step_once(state, dataset, recipe(TWO, max_sent=80))
    assert expected["num_visible"] == 0 and 50 < sent["num_visible"] <= 80
    assert expected["ok"] == sent["ok"] == 1 and sent["num_unsent"] == 0
    np.testing.assert_allclose(sent["total"], expected["total"], rtol=1e-6)
    assert sent["num_intersections"] == expected["num_intersections"]
    found, gradients = moments_of(split.gaussians_opt), moments_of(whole.gaussians_opt)
    for name in ("means", "log_scales", "logit_opacities", "sh_dc"):
        expected = getattr(gradients, name)
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-6 * float(jnp.abs(expected).max()))
    poses = [np.asarray(moments_of(s.poses_opt)) for s in (split, whole)]
    np.testing.assert_allclose(*poses, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(split.density.grad_norms, whole.density.grad_norms, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(split.density.counts, whole.density.counts)
    np.testing.assert_allclose(split.density.max_radii, whole.density.max_radii, rtol=1e-5)
    unchanged, short = step_once(state, dataset, recipe(TWO, max_sent=48))
    assert short["ok"] == 0 and short["num_unsent"] == short["num_visible"] - 48 > 0
    assert_same(unchanged, state)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [WHOLE, TWO])
def test_a_loop_of_known_length_takes_the_same_steps(setting, shards):
    """As GPUs have it: the views of all steps are drawn before the loop, and small arrays travel joined."""
    _, state, dataset, recipe = setting
    steps = jnp.int32(0), jnp.int32(3)
    expected, of_while = on_two_devices(train_steps, state, dataset, recipe(shards), *steps)
    known = dataclasses.replace(recipe(shards), loop_length=4)
    after, metrics = on_two_devices(train_steps, state, dataset, known, *steps)
    assert_close((after, metrics), (expected, of_while), start=(state, of_while))


def moments_of(opt_state: Any) -> Any:
    """The first moments of Adam."""
    return opt_state[0].mu


def test_counts_of_split_gaussians(setting):
    _, state, dataset, recipe = setting
    view = recipe(TWO).view
    split = split_rows(state, TWO)
    split = parallel.spread(split, row_axes(split), 2)
    intersections, visible = largest_counts(split, dataset, view, TWO)
    assert intersections == largest_count(state, dataset, view) and 50 < visible <= 101


def test_visible_gaussians_are_kept_in_order(setting):
    _, state, dataset, recipe = setting
    camera = jax.tree.map(lambda x: jnp.asarray(x[0]), dataset.cameras)
    seen = see(state.gaussians, state.alive, state.filter_3d, camera, view=recipe(WHOLE).view)
    visible = np.flatnonzero(seen.projected.radii_px[:, 0] > 0)
    kept, rows = keep_visible(seen, len(visible) + 3)
    np.testing.assert_array_equal(rows, [*visible, *[201] * 3])
    np.testing.assert_array_equal(kept.features[:-3], seen.features[visible])
    assert not kept.projected.radii_px[-3:].any()


# Rows and density control.


def test_rows_are_split_and_joined():
    state = make_state(large=[2])
    split = split_rows(state, Shards(5))  # of 12 rows: 3 on each device
    assert split.alive.shape == (5, 3) and split.gaussians.means.shape == (5, 3, 3) and split.poses is state.poses
    np.testing.assert_array_equal(split.gaussians.means[2, 1], state.gaussians.means[7])
    assert not split.alive[2:, 2].any(), "rows 12, 13 and 14"
    assert_same(join_rows(split, max_rows=12), state)
    larger = grow(split, 4)
    assert larger.alive.shape == (5, 4) and larger.alive.sum() == state.alive.sum()
    assert_same(join_rows(larger, max_rows=12), state)
    assert_same(ungrow(larger, 3), split)


@pytest.mark.parametrize("rows, max_rows", [(12, 12), (12, 8), (11, 11)])
def test_density_control_of_split_gaussians_is_that_of_whole_ones(setting, rows, max_rows):
    """Clones, splits with the same noise, prunes; the limit holds although dead rows fill up the last shard."""
    state, (_, _, dataset, _) = (
        make_state([0.9, 0.7, 0, 0.8, 0.95, 0.85], large=[1, 4], opacities=[0.5] * 5 + [0.05]),
        setting,
    )
    state = ungrow(state, rows)
    how = jnp.int32(7), jax.random.key(3), Thresholds(grad=0.5, min_opacity=0.1, clone_max_scale=0.1), dataset
    whole = apply(control_density, jax.tree.map(jnp.copy, state), *how, max_rows=max_rows)
    split = jax.tree.map(jnp.array, split_rows(state, TWO))
    split = parallel.spread(split, row_axes(split), 2)
    split = apply(control_density, split, *how, shards=TWO, max_rows=max_rows)
    found = join_rows(split, max_rows=rows)
    assert int(whole.alive.sum()) == min(max_rows, 9) and int(found.alive.sum()) == min(max_rows, 9)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_several_processes_do_the_same(setting, monkeypatch):
    """The twin of pmap, for density control and what the host asks of a state. Both devices are of this process here."""
    _, whole, dataset, recipe = setting
    how = whole.step, jax.random.key(3), Thresholds(grad=0.0, min_opacity=0.01, clone_max_scale=0.01), dataset

    def run():
        for cached in (programs._map_operation, programs._map_survey, programs._map_counts):
            cached.cache_clear()
        split = jax.tree.map(jnp.array, split_rows(whole, TWO))
        split = parallel.spread(split, row_axes(split), 2)
        counts = programs.largest_counts(split, dataset, recipe(TWO).view, TWO)
        split = apply(control_density, split, *how, shards=TWO, max_rows=201)
        return counts, jax.device_get(programs.survey(split, TWO)), join_rows(split, max_rows=201)

    expected = run()
    assert int(whole.alive.sum()) < expected[1]["num_gaussians"] <= 201 and expected[1]["is_finite"]
    monkeypatch.setattr(parallel, "is_alone", lambda: False)
    found = run()
    monkeypatch.undo()
    assert_same(found, expected)
    programs._map_operation.cache_clear()


def test_rows_move_in_several_exchanges(monkeypatch):
    monkeypatch.setattr(shards, "MOVED_AT_ONCE", 3)
    values = np.arange(20.0).reshape(2, 5, 2)  # row i at [i % 2, i // 2]
    sources, targets = jnp.array([7, 0, 2, 9, 4, 5, 1, 3, 6, 8]), jnp.array([1, 9, 8, 3, 10, 10, 10, 10, 10, 10])

    def move(own):
        return (
            TWO.move(jnp.zeros_like(own), own, sources, targets, jnp.int32(4)),
            TWO.gather(own),
            TWO.own(TWO.gather(own)),
        )

    moved, everywhere, own = jax.pmap(move, axis_name=parallel.AXIS)(values)
    np.testing.assert_array_equal(own, values)
    order = np.swapaxes(values, 0, 1).reshape(10, 2)
    np.testing.assert_array_equal(everywhere[1], order)
    expected = np.zeros((10, 2))
    expected[[1, 9, 8, 3]] = order[[7, 0, 2, 9]]
    np.testing.assert_array_equal(np.swapaxes(moved, 0, 1).reshape(10, 2), expected)


# Memory, and what cannot be split.


def test_state_of_a_device_is_its_share(setting):
    """Bytes of the state among the arguments of a compiled program."""
    _, state, _, _ = setting

    def measure(shards):
        own = parallel.without_empty(split_rows(state, shards) if shards.are_split else state)
        axes = row_axes(own) if shards.are_split else None
        step = lambda rank, state: (state, {})
        mapped: Any = parallel.parallelize(step, num_args=0, num_devices=shards.num, num_shards=shards.num, axes=axes)
        return mapped.lower(parallel.ranks(shards.num), own).compile().memory_analysis().argument_size_in_bytes

    rows = state.gaussians, state.gaussians_opt, state.density, state.filter_3d, state.alive
    rows = sum(x.nbytes for x in jax.tree.leaves(rows))
    whole, half = measure(WHOLE), measure(TWO)
    assert rows < whole and whole - half == pytest.approx(rows / 2, rel=0.02)


def test_forecast_is_of_one_device(setting):
    job, state, _, _ = setting
    whole, split = (forecast_memory(job, state, num_shards=num) for num in (1, 3))
    assert whole.photographs == split.photographs and whole.temporaries > split.temporaries
    assert split.state == pytest.approx(whole.state / 3, rel=0.05)


def test_what_cannot_be_split_is_one_line():
    settings = read_config(make_config(True))
    assert make_shards(settings, 2) == TWO and make_shards(settings, 1) == WHOLE
    assert make_shards(read_config(make_config(False)), 2) == WHOLE
    check_shards(TWO, 2)
    with pytest.raises(
        UserError, match="came for 1 Gaussians on 2 devices, expected at least one for each: set config"
    ):
        check_shards(TWO, 1)
