"""Figures beside the true blur, against SciPy and counting."""

import itertools

import numpy as np
import pytest
import scipy.stats

from bags_jax.report.with_truth import (
    FoundBlur,
    area_under_roc,
    format_rows,
    mean_of_blocks,
    rank_correlation,
    score_blur,
)


def test_rank_correlation_is_spearmans():
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 6, 40).astype(float), draw.integers(0, 6, 40).astype(float)
    assert rank_correlation(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])
    assert rank_correlation(a, 3 * a**3 + 1) == pytest.approx(1.0)
    assert rank_correlation(a, np.ones(40)) is None and rank_correlation(a[:1], b[:1]) is None


def test_area_under_roc_counts_pairs():
    draw = np.random.default_rng(1)
    scores, positive = draw.integers(0, 5, 30).astype(float), draw.random(30) < 0.4
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    assert area_under_roc(scores, positive) == pytest.approx(np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs]))
    assert area_under_roc(scores, np.ones(30, bool)) is None


def test_blocks_at_the_border_are_means_of_what_is_there():
    values = np.arange(35.0).reshape(5, 7)
    np.testing.assert_allclose(mean_of_blocks(values, (5, 7)), values)
    found = mean_of_blocks(values[:4, :6], (2, 3))
    np.testing.assert_allclose(found, values[:4, :6].reshape(2, 2, 3, 2).mean((1, 3)))
    np.testing.assert_allclose(mean_of_blocks(np.full((5, 7), 0.3), (3, 4)), 0.3)


def test_scores_of_views():
    draw = np.random.default_rng(2)
    truths = [draw.random((4, 5)) * scale for scale in (0.2, 1.0, 3.0)]
    whole = score_blur([FoundBlur(t / 4, 2 * t, t) for t in truths])
    assert all(value == pytest.approx(1.0) for value in whole.values())
    sharp = score_blur([FoundBlur(np.zeros((4, 5)), t, np.zeros((4, 5))) for t in truths])
    assert sharp == {"pixel_rank_correlation": None, "view_rank_correlation": None, "mask_AUC": None}
    assert [row[1] for row in format_rows(sharp)] == ["-"] * 3 and format_rows(None) == []
