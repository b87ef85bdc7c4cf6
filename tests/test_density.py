"""Density control at fixed capacity: its schedule, what is cloned, split and pruned, dead rows, Adam's moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bags_jax.geometry import apply_filter_3d, rotation_from_quat
from bags_jax.scene.density import (
    Thresholds,
    add_stats,
    densify_and_prune,
    empty_stats,
    is_density_step,
    is_reset_step,
    reset_opacity,
    thresholds_at,
    view_stats,
)
from bags_jax.scene.rows import grow, ungrow
from bags_jax.settings import Density
from bags_jax.structs import DensityStats, Gaussians, Projected, TrainState

NUM, LIVING = 12, 6
THRESHOLDS = Thresholds(grad=0.5, min_opacity=0.1, clone_max_scale=0.1)  # with an extent of 2: split above 0.2
SMALL, LARGE = np.log(0.05), np.log(0.6)


def make_state(grads=(), *, large=(), opacities=None, radii=()) -> TrainState:
    """Six living rows and six dead ones; grads, radii: of the first rows; large: rows that are to be split."""
    rng = np.random.default_rng(0)
    scales = np.full((NUM, 3), SMALL) + rng.normal(size=(NUM, 3)) * 0.01
    for row in large:
        scales[row, 1] = LARGE
    logits = np.full(NUM, 2.0)
    if opacities is not None:
        logits[: len(opacities)] = np.log(np.array(opacities) / (1 - np.array(opacities)))
    arrays = rng.normal(size=(NUM, 3)), rng.normal(size=(NUM, 4)), scales, logits
    colors = rng.normal(size=(NUM, 1, 3)), rng.normal(size=(NUM, 3, 3))
    gaussians = Gaussians(*(jnp.asarray(x, jnp.float32) for x in (*arrays, *colors)))
    optimizer = optax.scale_by_adam()
    _, moments = optimizer.update(jax.tree.map(jnp.ones_like, gaussians), optimizer.init(gaussians))
    stats = np.zeros((2, NUM))
    stats[0, : len(grads)], stats[1, : len(radii)] = grads, radii
    return TrainState(
        step=jnp.int32(7),
        seed=jnp.int32(0),
        gaussians=gaussians,
        alive=jnp.arange(NUM) < LIVING,
        filter_3d=jnp.asarray(np.linspace(0.01, 0.02, NUM), jnp.float32),
        network={},
        gaussians_opt=moments,
        network_opt=(),
        poses=jnp.zeros((0, 6)),
        poses_opt=(),
        exposures=jnp.zeros((0, 3)),
        exposures_opt=(),
        blur_px=jnp.zeros(0),
        density=DensityStats(
            jnp.asarray(2 * stats[0], jnp.float32), jnp.full(NUM, 2.0), jnp.asarray(stats[1], jnp.float32)
        ),
    )


_control = jax.jit(densify_and_prune)


def control(state: TrainState, *, seed: int = 0, thresholds: Thresholds = THRESHOLDS) -> TrainState:
    return _control(state, jax.random.key(seed), thresholds, extent=2.0)


def rows(state: TrainState, index) -> list[np.ndarray]:
    return [np.asarray(x)[index] for x in jax.tree.leaves(state.gaussians)]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_nothing_wanted_changes_nothing():
    state = make_state([0.1] * 6)
    after = control(state)
    assert_same(
        (after.gaussians, after.alive, after.gaussians_opt), (state.gaussians, state.alive, state.gaussians_opt)
    )
    assert not after.density.counts.any() and not after.density.grad_norms.any() and not after.density.max_radii.any()


def test_small_is_cloned():
    state = make_state([0, 0, 0.9])
    after = control(state)
    assert after.alive.sum() == LIVING + 1 and after.alive[LIVING]
    assert_same(rows(after, LIVING), rows(state, 2))
    kept = np.arange(NUM) != LIVING
    assert_same(rows(after, kept), rows(state, kept))
    assert after.filter_3d[LIVING] == state.filter_3d[2]
    assert not after.gaussians_opt.mu.means[LIVING].any() and not after.gaussians_opt.nu.sh_rest[LIVING].any()
    assert_same(after.gaussians_opt.mu.means[kept], state.gaussians_opt.mu.means[kept])


def test_large_is_split():
    state = make_state([0, 0.9], large=[1])
    after = control(state)
    assert after.alive.sum() == LIVING + 1
    shrunk = np.asarray(state.gaussians.log_scales[1]) - np.log(1.6)
    for row in (1, LIVING):
        np.testing.assert_allclose(after.gaussians.log_scales[row], shrunk, rtol=1e-5)
        np.testing.assert_array_equal(after.gaussians.quats[row], state.gaussians.quats[1])
        local = rotation_from_quat(state.gaussians.quats)[1].T @ (after.gaussians.means[row] - state.gaussians.means[1])
        deviations = np.abs(local) / np.exp(state.gaussians.log_scales[1])
        assert 0.01 < deviations.max() < 5  # drawn from the Gaussian itself, along its own axes
        assert not after.gaussians_opt.mu.means[row].any() and not after.gaussians_opt.nu.quats[row].any()
    assert (after.gaussians.means[1] != after.gaussians.means[LIVING]).all()
    others = ~np.isin(np.arange(NUM), (1, LIVING))
    assert_same(rows(after, others), rows(state, others))


def test_noise_depends_on_the_key_alone():
    state = make_state([0, 0.9], large=[1])
    assert_same(control(state, seed=3), control(state, seed=3))
    assert (control(state, seed=3).gaussians.means[1] != control(state, seed=4).gaussians.means[1]).any()


def test_transparent_is_pruned_and_its_row_is_free():
    state = make_state([0, 0, 0, 0, 0.9, 0.9], opacities=[0.5, 0.05, 0.5, 0.5, 0.5, 0.05])
    after = control(state)
    # Rows 1 and 5 go, and although 5 has a large gradient nothing grows from it; the clone of 4 moves into row 1.
    np.testing.assert_array_equal(after.alive, [True] * 5 + [False] * 7)
    assert_same(rows(after, 1), rows(state, 4))


def test_too_large_is_pruned():
    thresholds = THRESHOLDS._replace(max_radius=0.2)
    after = control(make_state(large=[3], radii=[0, 0.3]), thresholds=thresholds)
    np.testing.assert_array_equal(after.alive[:LIVING], [True, False, True, True, True, True])
    assert control(make_state(large=[3], radii=[0, 0.3])).alive.sum() == LIVING


def test_largest_gradients_come_first_where_dead_rows_run_out():
    state = make_state([0.6, 0.9, 0.7, 0.8, 0.1, 1.0])
    state = dataclasses.replace(state, alive=state.alive.at[8:].set(True).at[6].set(True).at[4].set(True))
    assert int((~state.alive).sum()) == 1
    after = control(state)
    assert after.alive.all()
    assert_same(rows(after, 7), rows(state, 5))
    state = dataclasses.replace(state, alive=state.alive.at[8].set(False))
    after = control(state)
    assert_same(rows(after, 7), rows(state, 5))
    assert_same(rows(after, 8), rows(state, 1))
    full = dataclasses.replace(state, alive=jnp.ones(NUM, bool))
    assert_same(control(full).gaussians, full.gaussians)


def test_dead_rows_take_no_part():
    state = make_state([0] * LIVING + [9.0] * (NUM - LIVING), large=[7, 8])
    after = control(state)
    assert_same((after.gaussians, after.alive), (state.gaussians, state.alive))


def test_growing_adds_dead_rows_and_can_be_undone():
    state = make_state([0.5, 0.7])
    after = grow(state, 20)
    assert after.alive.shape == (20,) and after.alive.sum() == LIVING and not after.alive[NUM:].any()
    assert after.poses.shape == state.poses.shape
    old_rows, new_rows = (dataclasses.replace(s, poses=None, exposures=None, blur_px=None) for s in (state, after))
    for old, new in zip(jax.tree.leaves(old_rows), jax.tree.leaves(new_rows), strict=True):
        assert new.shape == ((20, *old.shape[1:]) if old.ndim else ())
        np.testing.assert_array_equal(new[:NUM] if old.ndim else new, old)
    with pytest.raises(ValueError, match="capacity 5 came for 12 rows"):
        grow(state, 5)
    assert_same(ungrow(after, NUM), state)


def test_reset_respects_the_3d_filter():
    state = make_state(opacities=[0.9, 0.5, 0.002, 0.3, 0.3, 0.3])
    state = dataclasses.replace(state, filter_3d=jnp.full(NUM, 0.03))
    after = reset_opacity(state)

    def drawn(s):
        return apply_filter_3d(
            jnp.exp(s.gaussians.log_scales), jax.nn.sigmoid(s.gaussians.logit_opacities), s.filter_3d
        )[1]

    np.testing.assert_allclose(drawn(after), np.minimum(drawn(state), 0.01), rtol=1e-4)
    assert jax.nn.sigmoid(after.gaussians.logit_opacities[0]) > 0.011  # more than 0.01 before the filter
    assert not after.gaussians_opt.mu.logit_opacities.any() and not after.gaussians_opt.nu.logit_opacities.any()
    assert_same(after.gaussians_opt.mu.means, state.gaussians_opt.mu.means)
    assert_same(after.gaussians.means, state.gaussians.means)


def test_statistics_are_in_ndc_and_add_up():
    radii = jnp.array([[3.0, 8.0], [0.0, 0.0]])
    ones = jnp.ones(2)
    seen = Projected(jnp.ones((2, 2)), jnp.ones((2, 3)), jnp.ones((2, 3)), ones, ones, radii)
    stats = view_stats(jnp.array([[0.03, 0.08], [1.0, 1.0]]), seen, width=200, height=100)
    np.testing.assert_allclose(stats.grad_norms, [5.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(stats.counts, [1, 0])
    np.testing.assert_allclose(stats.max_radii, [0.04, 0])
    both = add_stats(stats, dataclasses.replace(stats, max_radii=jnp.array([0.01, 0.5])))
    np.testing.assert_allclose(both.grad_norms, [10, 0], rtol=1e-6)
    np.testing.assert_allclose(both.counts, [2, 0])
    np.testing.assert_allclose(both.max_radii, [0.04, 0.5])
    assert_same(add_stats(stats, empty_stats(2)), stats)


def test_gaussians_beyond_the_photograph_and_its_margin_are_not_seen():
    """The canvas goes on to the right and down where other photographs are larger."""
    means = jnp.array([[22.9, 5.0], [23.1, 5.0], [5.0, 16.9], [5.0, 17.1]])
    ones = jnp.ones(4)
    seen = Projected(means, jnp.ones((4, 3)), jnp.ones((4, 3)), ones, ones, jnp.ones((4, 2)))
    stats = view_stats(jnp.ones((4, 2)), seen, width=20, height=14, margin=1)
    for found in (stats.counts, stats.max_radii * 20, stats.grad_norms / np.hypot(10, 7)):
        np.testing.assert_allclose(found, [1, 0, 1, 0], rtol=1e-6)


DENSITY = Density(
    every=100, start=200, stop=1000, grad_threshold=1e-3, grad_threshold_early=2e-3, min_opacity=0.1,
    min_opacity_early=0.2, max_radius=0.5, max_radius_after=300, reset_every=250,
)  # fmt: skip


def test_density_steps_are_multiples_between_start_and_stop():
    assert [step for step in range(1, 1300) if is_density_step(DENSITY, step)] == list(range(200, 1001, 100))


def test_opacity_is_reset_at_density_steps():
    """The period is rounded up to a multiple of density.every: 300 here."""
    assert [step for step in range(1, 1300) if is_reset_step(DENSITY, step)] == [300, 600, 900]
    at_stop = dataclasses.replace(DENSITY, reset_every=1000)
    assert not any(is_reset_step(at_stop, step) for step in range(1300))  # not after the last density control step
    never = dataclasses.replace(DENSITY, reset_every=0)
    assert not any(is_reset_step(never, step) for step in range(1300))


def test_thresholds_change_where_the_late_ones_begin():
    early, late = (thresholds_at(DENSITY, 600, is_early=is_early) for is_early in (True, False))
    assert (early.grad, early.min_opacity) == (2e-3, 0.2) and (late.grad, late.min_opacity) == (1e-3, 0.1)
    assert early.clone_max_scale == late.clone_max_scale == DENSITY.clone_max_scale


def test_largest_radius_holds_only_after_a_step():
    assert [thresholds_at(DENSITY, step, is_early=True).max_radius for step in (300, 301)] == [0.0, 0.5]


def test_largest_scale_holds_only_late_and_after_a_step():
    density = dataclasses.replace(DENSITY, max_scale=0.1)
    found = [thresholds_at(density, *at, is_early=e).max_scale for at, e in (((301,), True), ((300,), False))]
    assert found == [0.0, 0.0] and thresholds_at(density, 301, is_early=False).max_scale == 0.1


def test_too_wide_is_pruned_after_it_was_split():
    """Scales 0.6, extent 2. Split in two, each is 0.375 wide: below 0.2 extents, while one that is not split is above."""
    thresholds = THRESHOLDS._replace(max_scale=0.2)
    after = control(make_state([0, 0.9], large=[1, 3]), thresholds=thresholds)
    np.testing.assert_array_equal(after.alive[: LIVING + 1], [True, True, True, False, True, True, True])
    after = control(make_state([0, 0.9], large=[1, 3]), thresholds=THRESHOLDS._replace(max_scale=0.1))
    np.testing.assert_array_equal(after.alive[: LIVING + 1], [True, False, True, False, True, True, False])
