"""The tone curve of sRGB against its definition in float64."""

import jax
import numpy as np
import pytest

from bags_jax.tone import linear_to_srgb, srgb_to_linear

X = np.concatenate([[-0.5, 0.0, 1.0, 1.5], np.random.default_rng(0).random(10_000)]).astype(np.float32)


def to_linear(x):
    return np.where(x <= 0.04045, x / 12.92, ((np.maximum(x, 0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(x):
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("function, definition", [(srgb_to_linear, to_linear), (linear_to_srgb, to_srgb)])
def test_equals_the_definition(function, definition):
    values = np.asarray(jax.jit(function)(X))
    np.testing.assert_allclose(
        values, definition(X.astype(np.float64)), atol=1e-6
    )  # rounding of float32: 2e-7 in [0, 1]


def test_slope_is_finite_and_positive_everywhere():
    for function in (srgb_to_linear, linear_to_srgb):
        slopes = np.asarray(jax.vmap(jax.grad(function))(X))
        assert np.isfinite(slopes).all() and (slopes > 0).all()
