"""Tests the basis against its definition: orthonormal, polynomials of one degree, order and signs of 3DGS."""

import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.spherical_harmonics import degree_of, evaluate_sh, num_coefficients, sh_basis


def sphere():
    """Returns directions and weights of a quadrature rule that integrates polynomials up to degree 14 exactly."""
    cosines, weights = np.polynomial.legendre.leggauss(8)
    angles = (np.arange(16) + 0.5) * np.pi / 8
    sines = np.sqrt(1 - cosines**2)[:, None]
    directions = np.stack(
        [sines * np.cos(angles), sines * np.sin(angles), np.broadcast_to(cosines[:, None], (8, 16))], -1
    )
    return directions.reshape(-1, 3), np.repeat(weights, 16) * np.pi / 8


def test_basis_is_orthonormal():
    directions, weights = sphere()
    basis = np.asarray(sh_basis(jnp.asarray(directions, jnp.float32), degree=3), float)
    np.testing.assert_allclose(basis.T @ (basis * weights[:, None]), np.eye(16), atol=1e-5)


def test_basis_fulfils_the_addition_theorem():
    # Sum over one degree of Y(a) Y(b) = (2 l + 1) / (4 pi) P_l(a . b): fails if a function has the wrong degree.
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 50, 3)))
    products = np.asarray(sh_basis(jnp.asarray(a, jnp.float32), degree=3)) * np.asarray(
        sh_basis(jnp.asarray(b, jnp.float32), degree=3)
    )
    cosines = np.sum(a * b, axis=1)
    for degree in range(4):
        expected = (2 * degree + 1) / (4 * np.pi) * np.polynomial.legendre.Legendre.basis(degree)(cosines)
        np.testing.assert_allclose(products[:, degree**2 : (degree + 1) ** 2].sum(axis=1), expected, atol=1e-5)


def test_order_and_signs_equal_those_of_the_file_format():
    x, y, z = 0.6, 0.48, 0.64
    basis = np.asarray(sh_basis(jnp.array([[x, y, z]]), degree=3))[0]
    np.testing.assert_allclose(basis[:4], [0.28209479, -0.48860251 * y, 0.48860251 * z, -0.48860251 * x], rtol=1e-6)
    # For m = -l .. l: proportional to a polynomial, with sign + for even m and - for odd m.
    second = [x * y, -y * z, 3 * z * z - 1, -x * z, x * x - y * y]
    third = [
        -y * (3 * x * x - y * y), x * y * z, -y * (5 * z * z - 1), z * (5 * z * z - 3), -x * (5 * z * z - 1),
        z * (x * x - y * y), -x * (x * x - 3 * y * y),
    ]  # fmt: skip
    np.testing.assert_array_equal(np.sign(basis[4:]), np.sign(second + third))


@pytest.mark.parametrize("degree", range(4))
def test_lower_degree_ignores_higher_coefficients(degree):
    rng = np.random.default_rng(2)
    coefficients = jnp.asarray(rng.normal(size=(9, 16, 3)) * 0.1, jnp.float32)
    directions = jnp.asarray(sphere()[0][:9], jnp.float32)
    num = num_coefficients(degree)
    cut = coefficients.at[:, num:].set(0.0)
    np.testing.assert_allclose(
        evaluate_sh(coefficients, directions, degree=degree), evaluate_sh(cut, directions, degree=3), atol=1e-6
    )
    assert degree_of(num) == degree


def test_colour_is_never_negative():
    dark = jnp.full((2, 1, 3), -9.0)
    assert not evaluate_sh(dark, jnp.eye(3)[:2], degree=0).any()
    np.testing.assert_allclose(evaluate_sh(jnp.zeros((2, 1, 3)), jnp.eye(3)[:2], degree=0), 0.5)


@pytest.mark.parametrize("num", [0, 2, 15, 25])
def test_wrong_number_of_coefficients_raises(num):
    with pytest.raises(ValueError, match=f"{num} spherical-harmonics coefficients came"):
        degree_of(num)
