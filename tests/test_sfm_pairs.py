"""Which photographs are matched: a number that grows linearly, and never two groups that no pair connects."""

import numpy as np
import pytest

from bags_jax.sfm.appearance import describe_photographs
from bags_jax.sfm.pairs import (
    convert_to_metres,
    find_groups,
    order_by_block,
    pair_all,
    pair_frames,
    pair_groups,
    pair_many,
)


def walk(num, seed=0):
    """Descriptors of photographs along a path: each is like its neighbours."""
    steps = np.random.default_rng(seed).normal(size=(num + 9, 64))
    smooth = np.stack([steps[i : i + 10].sum(0) for i in range(num)])
    return smooth / np.linalg.norm(smooth, axis=1, keepdims=True)


def as_set(pairs):
    return set(map(tuple, pairs.tolist()))


def test_all_pairs():
    assert as_set(pair_all(4)) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


@pytest.mark.parametrize("pair", [lambda num: pair_many(walk(num)), lambda num: pair_frames(num, walk(num))])
def test_pairs_grow_linearly(pair):
    few, many = len(pair(160)) / 160, len(pair(640)) / 640
    assert 5 < few < 30 and many < 1.15 * few
    pairs = pair(160)
    assert len(as_set(pairs)) == len(pairs) and (pairs[:, 0] < pairs[:, 1]).all() and pairs.max() < 160


def test_frames_are_paired_with_their_followers_and_with_a_place_seen_before():
    descriptors = walk(100)
    descriptors[90] = descriptors[10]
    pairs = as_set(pair_frames(100, descriptors))
    assert {(i, i + 1) for i in range(99)} <= pairs and {(i, i + 6) for i in range(94)} <= pairs
    assert (10, 90) in pairs and (0, 99) not in pairs


def test_photographs_taken_at_one_place_are_paired_by_gps():
    descriptors, positions = walk(200), np.zeros((200, 3))
    positions[:, 0] = 10.0 * np.arange(200)
    positions[150] = positions[20] + 0.1
    assert (20, 150) not in as_set(pair_many(descriptors))
    assert (20, 150) in as_set(pair_many(descriptors, positions))


def test_degrees_become_metres():
    metres = convert_to_metres(np.array([[60.0, 10.0, 5.0], [60.001, 10.0, 5.0], [60.0, 10.002, 7.0]]))
    np.testing.assert_allclose(np.linalg.norm(metres[1] - metres[0]), 111.3, rtol=1e-3)
    np.testing.assert_allclose(metres[2] - metres[0], [0.0, 111.3, 2.0], rtol=1e-2, atol=0.1)


def test_groups_are_connected_by_their_most_similar_photographs():
    descriptors = walk(40)
    descriptors[35] = descriptors[3]
    separate = np.array([(i, i + 1) for i in range(39) if i != 29])
    assert [len(group) for group in find_groups(40, separate)] == [30, 10]
    bridges = pair_groups(separate, descriptors)
    assert (3, 35) in as_set(bridges) and len(bridges) <= 30
    assert all((first < 30) != (second < 30) for first, second in bridges)
    assert len(find_groups(40, np.concatenate([separate, bridges]))) == 1
    assert not len(pair_groups(pair_all(40), descriptors))


def test_a_photograph_without_features_is_still_paired():
    descriptors = walk(200)
    descriptors[77] = 0.0
    assert len(find_groups(200, pair_many(descriptors))) == 1


def test_blocks_keep_every_pair():
    pairs = pair_all(40)
    ordered = order_by_block(pairs, 16)
    assert as_set(ordered) == as_set(pairs) and len(ordered) == len(pairs)
    assert (ordered[: 16 * 15 // 2] < 16).all()


def test_photographs_of_the_same_things_have_similar_descriptors():
    key = np.random.default_rng(0)
    things = key.integers(0, 255, (6, 60, 128), dtype=np.uint8)
    views = [np.concatenate([things[i][:40], things[i + 1][20:]]) for i in range(5)]
    noisy = [np.clip(view + key.normal(size=view.shape) * 8, 0, 255).astype(np.uint8) for view in views]
    descriptors = describe_photographs([*views, *noisy, np.zeros((0, 128), np.uint8)])
    np.testing.assert_allclose(np.linalg.norm(descriptors[:10], axis=1), 1.0, rtol=1e-5)
    assert not descriptors[10].any()
    alike = descriptors[:5] @ descriptors[5:10].T
    assert (alike.argmax(axis=1) == np.arange(5)).all()
    assert alike[0, 1] > alike[0, 3] + 0.1  # two views that share things


def test_no_features_at_all():
    assert describe_photographs([np.zeros((0, 128), np.uint8)] * 3).shape[0] == 3
