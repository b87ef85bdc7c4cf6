"""View-dependent colour: real spherical harmonics of degree 0 to 3, with the order and signs of the 3DGS file format."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.numerics import EXACT

SH_C0 = 0.28209479177387814  # the harmonic of degree 0
MAX_DEGREE = 3


def num_coefficients(degree: int) -> int:
    """Returns the number of coefficients of all degrees up to `degree`."""
    return (degree + 1) ** 2


def degree_of(num: int) -> int:
    """Returns the degree with `num` coefficients, those of lower degrees included.

    Raises:
      ValueError: num is not 1, 4, 9 or 16.
    """
    for degree in range(MAX_DEGREE + 1):
        if num_coefficients(degree) == num:
            return degree
    raise ValueError(f"{num} spherical-harmonics coefficients came, expected 1, 4, 9 or 16 (degree 0 to 3)")


def sh_basis(directions: Float[Array, "*S 3"], *, degree: int) -> Float[Array, "*S L"]:
    """Evaluates real spherical harmonics with the Condon-Shortley phase (Sloan 2008, appendix A2).

    Args:
      directions: unit vectors, world frame, from the camera to the Gaussian.
      degree: 0 to 3.
    Returns:
      The L = (degree + 1)^2 harmonics in each direction, by degree l, then m = -l .. l.
    """
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    basis = [jnp.full_like(x, SH_C0)]
    if degree >= 1:
        c = 0.4886025119029199
        basis += [-c * y, c * z, -c * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        c, c0, c2 = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        basis += [c * x * y, -c * y * z, c0 * (3.0 * zz - 1.0), -c * x * z, c2 * (xx - yy)]
    if degree >= 3:
        c3, c2, c1, c0, d2 = (
            0.5900435899266435,
            2.890611442640554,
            0.4570457994644658,
            0.3731763325901154,
            1.445305721320277,
        )
        basis += [
            -c3 * y * (3.0 * xx - yy),
            c2 * x * y * z,
            -c1 * y * (5.0 * zz - 1.0),
            c0 * z * (5.0 * zz - 3.0),
            -c1 * x * (5.0 * zz - 1.0),
            d2 * z * (xx - yy),
            -c3 * x * (xx - 3.0 * yy),
        ]
    return jnp.stack(basis, axis=-1)


def evaluate_sh(
    coefficients: Float[Array, "N L 3"], directions: Float[Array, "N 3"], *, degree: int
) -> Float[Array, "N 3"]:
    """Evaluates colours: max(0, 0.5 + sum of coefficients times harmonics) (Kerbl et al. 2023, section 4).

    Args:
      coefficients: L >= (degree + 1)^2; those of higher degrees are ignored.
      directions: unit vectors, world frame, from the camera to the Gaussian.
      degree: highest degree to use, 0 to 3.
    Returns:
      RGB.
    """
    basis = sh_basis(directions, degree=degree)
    used = coefficients[:, : num_coefficients(degree), :]
    rgb = jnp.einsum("nl,nlc->nc", basis, used, precision=EXACT)
    return jnp.maximum(rgb + 0.5, 0.0)
