"""Density control at fixed capacity: who is cloned, split, pruned; what happens to the dead and to Adam's moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bags_jax.geometry import apply_filter_3d, rotation_from_quat
from bags_jax.scene.density import (
    DensityRules,
    add_stats,
    densify_and_prune,
    empty_stats,
    grow,
    reset_opacity,
    view_stats,
)
from bags_jax.structs import DensityStats, Gaussians, Projected, TrainState

NUM, LIVING = 12, 6
RULES = DensityRules(min_opacity=0.1, clone_max_scale=0.1)  # with an extent of 2: split above 0.2
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
        blur_px=jnp.zeros(0),
        density=DensityStats(
            jnp.asarray(2 * stats[0], jnp.float32), jnp.full(NUM, 2.0), jnp.asarray(stats[1], jnp.float32)
        ),
    )


_turn = jax.jit(densify_and_prune, static_argnames="rules")


def turn(state: TrainState, *, threshold: float = 0.5, seed: int = 0, rules: DensityRules = RULES) -> TrainState:
    return _turn(state, jax.random.key(seed), jnp.float32(threshold), extent=2.0, rules=rules)


def rows(state: TrainState, index) -> list[np.ndarray]:
    return [np.asarray(x)[index] for x in jax.tree.leaves(state.gaussians)]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_nothing_wanted_changes_nothing():
    state = make_state([0.1] * 6)
    after = turn(state)
    assert_same(
        (after.gaussians, after.alive, after.gaussians_opt), (state.gaussians, state.alive, state.gaussians_opt)
    )
    assert not after.density.counts.any() and not after.density.grad_norms.any() and not after.density.max_radii.any()


def test_small_is_cloned():
    state = make_state([0, 0, 0.9])
    after = turn(state)
    assert after.alive.sum() == LIVING + 1 and after.alive[LIVING]
    assert_same(rows(after, LIVING), rows(state, 2))
    kept = np.arange(NUM) != LIVING
    assert_same(rows(after, kept), rows(state, kept))
    assert after.filter_3d[LIVING] == state.filter_3d[2]
    assert not after.gaussians_opt.mu.means[LIVING].any() and not after.gaussians_opt.nu.sh_rest[LIVING].any()
    assert_same(after.gaussians_opt.mu.means[kept], state.gaussians_opt.mu.means[kept])


def test_large_is_split():
    state = make_state([0, 0.9], large=[1])
    after = turn(state)
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
    assert_same(turn(state, seed=3), turn(state, seed=3))
    assert (turn(state, seed=3).gaussians.means[1] != turn(state, seed=4).gaussians.means[1]).any()


def test_transparent_is_pruned_and_its_row_is_free():
    state = make_state([0, 0, 0, 0, 0.9, 0.9], opacities=[0.5, 0.05, 0.5, 0.5, 0.5, 0.05])
    after = turn(state)
    # Rows 1 and 5 go, and although 5 has a large gradient nothing grows from it; the clone of 4 moves into row 1.
    np.testing.assert_array_equal(after.alive, [True] * 5 + [False] * 7)
    assert_same(rows(after, 1), rows(state, 4))


def test_too_large_is_pruned():
    rules = dataclasses.replace(RULES, max_radius=0.2, max_scale=0.25)
    after = turn(make_state(large=[3], radii=[0, 0.3]), rules=rules)
    np.testing.assert_array_equal(after.alive[:LIVING], [True, False, True, False, True, True])
    assert turn(make_state(large=[3], radii=[0, 0.3])).alive.sum() == LIVING


def test_largest_gradients_come_first_where_room_runs_out():
    state = make_state([0.6, 0.9, 0.7, 0.8, 0.1, 1.0])
    state = dataclasses.replace(state, alive=state.alive.at[8:].set(True).at[6].set(True).at[4].set(True))
    assert int((~state.alive).sum()) == 1
    after = turn(state)
    assert after.alive.all()
    assert_same(rows(after, 7), rows(state, 5))
    state = dataclasses.replace(state, alive=state.alive.at[8].set(False))
    after = turn(state)
    assert_same(rows(after, 7), rows(state, 5))
    assert_same(rows(after, 8), rows(state, 1))
    full = dataclasses.replace(state, alive=jnp.ones(NUM, bool))
    assert_same(turn(full).gaussians, full.gaussians)


def test_dead_rows_take_no_part():
    state = make_state([0] * LIVING + [9.0] * (NUM - LIVING), large=[7, 8])
    after = turn(state)
    assert_same((after.gaussians, after.alive), (state.gaussians, state.alive))


def test_growing_keeps_all_and_adds_dead_rows():
    state = make_state([0.5, 0.7])
    after = grow(state, 20)
    assert after.alive.shape == (20,) and after.alive.sum() == LIVING and not after.alive[NUM:].any()
    assert after.poses.shape == state.poses.shape
    old_rows, new_rows = (dataclasses.replace(s, poses=None, blur_px=None) for s in (state, after))
    for old, new in zip(jax.tree.leaves(old_rows), jax.tree.leaves(new_rows), strict=True):
        assert new.shape == ((20, *old.shape[1:]) if old.ndim else ())
        np.testing.assert_array_equal(new[:NUM] if old.ndim else new, old)
    with pytest.raises(ValueError, match="capacity 5 came for 12 rows"):
        grow(state, 5)


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


def test_what_lies_beyond_the_photograph_and_its_margin_is_not_seen():
    """The canvas goes on to the right and down where other photographs are larger."""
    means = jnp.array([[22.9, 5.0], [23.1, 5.0], [5.0, 16.9], [5.0, 17.1]])
    ones = jnp.ones(4)
    seen = Projected(means, jnp.ones((4, 3)), jnp.ones((4, 3)), ones, ones, jnp.ones((4, 2)))
    stats = view_stats(jnp.ones((4, 2)), seen, width=20, height=14, margin=1)
    for found in (stats.counts, stats.max_radii * 20, stats.grad_norms / np.hypot(10, 7)):
        np.testing.assert_allclose(found, [1, 0, 1, 0], rtol=1e-6)
