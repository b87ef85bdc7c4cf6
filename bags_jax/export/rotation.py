"""Rotates Gaussians, spherical harmonics included, into the frame of a file."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bags_jax.spherical_harmonics import MAX_DEGREE, num_coefficients, sh_basis
from bags_jax.structs import Gaussians


def rotate_gaussians(gaussians: Gaussians, rotation: Float[np.ndarray, "3 3"]) -> Gaussians:
    """Rotates a cloud of Gaussians about the origin: a camera that is rotated as well sees the same picture.

    Args:
      gaussians: before activation.
      rotation: proper rotation, new frame from old frame.
    """
    turn = np.asarray(rotation, np.float64)
    rest = np.array(gaussians.sh_rest, np.float64)
    for degree in range(1, MAX_DEGREE + 1):
        band = slice(num_coefficients(degree - 1) - 1, num_coefficients(degree) - 1)
        if rest.shape[1] >= band.stop:
            rest[:, band] = np.einsum("lm,nmc->nlc", rotate_harmonics(turn, degree=degree), rest[:, band])
    return dataclasses.replace(
        gaussians,
        means=jnp.asarray(np.asarray(gaussians.means, np.float64) @ turn.T, jnp.float32),
        quats=jnp.asarray(_multiply_quats(_quat_of(turn), np.asarray(gaussians.quats, np.float64)), jnp.float32),
        sh_rest=jnp.asarray(rest, jnp.float32),
    )


def rotate_harmonics(rotation: Float[np.ndarray, "3 3"], *, degree: int) -> Float[np.ndarray, "M M"]:
    """Returns the matrix that rotates the M = 2 degree + 1 coefficients of one degree.

    The rotated function has the value of the old one in the direction rotated back: Y(d) c' = Y(R^T d) c for every
    direction d. Solving for more directions than coefficients gives the matrix to the precision of float64.
    """
    directions = _directions()
    before, after = (_harmonics(d, degree=degree) for d in (directions @ rotation, directions))
    return np.linalg.lstsq(after, before, rcond=None)[0]


@functools.cache
def _directions() -> Float[np.ndarray, "D 3"]:
    """Unit vectors on all sides."""
    vectors = np.random.default_rng(0).standard_normal((64, 3))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _harmonics(directions: Float[np.ndarray, "D 3"], *, degree: int) -> Float[np.ndarray, "D M"]:
    with jax.enable_x64(True):
        basis = np.asarray(sh_basis(jnp.asarray(directions, jnp.float64), degree=degree))
    return basis[:, num_coefficients(degree - 1) :]


def _quat_of(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Returns the unit quaternion wxyz of a rotation matrix."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return np.array([w, x, y, z])


def _multiply_quats(left: Float[np.ndarray, "4"], right: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    """Returns the Hamilton products, wxyz."""
    w, v = left[0], left[1:]
    scalar = w * right[:, :1] - right[:, 1:] @ v[:, None]
    vector = w * right[:, 1:] + right[:, :1] * v + np.cross(v[None], right[:, 1:])
    return np.concatenate([scalar, vector], axis=1)
