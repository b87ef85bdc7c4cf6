"""Tests values and gradients where the plain functions have infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.numerics import clip_with_return, relu_with_return, safe_div, safe_normalize, safe_sqrt


def test_safe_sqrt():
    x = jnp.array([-1.0, 0.0, 1e-30, 4.0])
    np.testing.assert_allclose(safe_sqrt(x), [0, 0, 0, 2])
    np.testing.assert_allclose(jax.grad(lambda x: safe_sqrt(x).sum())(x), [0, 0, 0, 0.25])


@pytest.mark.parametrize(
    "x, value, cotangent, pulled",
    [
        # Descent moves x against the gradient: below the bound a positive gradient moves x further out.
        (-6.0, -5.0, 1.0, 0.0),
        (-6.0, -5.0, -1.0, -1.0),
        (0.0, 0.0, 1.0, 1.0),
        (0.0, 0.0, -1.0, -1.0),
        (6.0, 5.0, 1.0, 1.0),
        (6.0, 5.0, -1.0, 0.0),
    ],
)
def test_clip_passes_gradients_that_lead_back_inside(x, value, cotangent, pulled):
    clipped, pull = jax.vjp(lambda x: clip_with_return(x, 5.0), jnp.float32(x))
    assert clipped == value and pull(jnp.float32(cotangent)) == (pulled,)


@pytest.mark.parametrize(
    "x, value, cotangent, pulled",
    [
        (-3.0, 0.0, 1.0, 0.0),
        (-3.0, 0.0, -1.0, -0.1),
        (0.0, 0.0, -1.0, -0.1),
        (2.0, 2.0, 1.0, 1.0),
        (2.0, 2.0, -1.0, -1.0),
    ],
)
def test_relu_passes_some_of_the_gradients_that_raise(x, value, cotangent, pulled):
    positive, pull = jax.vjp(relu_with_return, jnp.float32(x))
    assert positive == value
    np.testing.assert_allclose(pull(jnp.float32(cotangent)), (pulled,))


def test_safe_div():
    a, b = jnp.array([1.0, 0.0, 6.0]), jnp.array([0.0, 0.0, 3.0])
    np.testing.assert_allclose(safe_div(a, b), [0, 0, 2])
    d_a, d_b = jax.grad(lambda a, b: safe_div(a, b).sum(), argnums=(0, 1))(a, b)
    np.testing.assert_allclose(d_a, [0, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(d_b, [0, 0, -2 / 3], rtol=1e-6)


def test_safe_normalize():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0]])
    np.testing.assert_allclose(safe_normalize(x), [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)
    assert np.isfinite(jax.jacobian(safe_normalize)(x)).all()
    direction = jax.grad(lambda x: safe_normalize(x)[0, 0])(x)
    np.testing.assert_allclose(direction[0], [0.64 / 5, -0.48 / 5], atol=1e-6)
