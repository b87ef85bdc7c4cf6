"""Tests that rotated Gaussians look the same to a rotated camera."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.data.poses import make_rigid, make_rotation
from bags_jax.export.rotation import rotate_gaussians, rotate_harmonics
from bags_jax.splatting import rasterization
from bags_jax.structs import Gaussians


def cloud(num: int, degree: int) -> Gaussians:
    rng = np.random.default_rng(degree)
    arrays = {
        "means": rng.normal(0, 0.6, (num, 3)),
        "quats": rng.normal(0, 1, (num, 4)),
        "log_scales": rng.normal(-2, 0.6, (num, 3)),
        "logit_opacities": rng.normal(0, 1, num),
        "sh_dc": rng.normal(0, 0.5, (num, 1, 3)),
        "sh_rest": rng.normal(0, 0.3, (num, (degree + 1) ** 2 - 1, 3)),
    }
    return Gaussians(**{name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()})


def render(gaussians: Gaussians, viewmat, degree: int) -> np.ndarray:
    K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    image, _, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=jnp.exp(gaussians.log_scales),
        opacities=jax.nn.sigmoid(gaussians.logit_opacities),
        colors=jnp.concatenate([gaussians.sh_dc, gaussians.sh_rest], axis=1),
        viewmats=jnp.asarray(viewmat, jnp.float32)[None],
        Ks=jnp.asarray(K, jnp.float32)[None],
        width=64,
        height=48,
        sh_degree=degree,
    )
    return np.asarray(image[0])


@pytest.mark.slow
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_rotated_camera_sees_the_same(degree):
    gaussians, viewmat = cloud(40, degree), make_rigid(make_rotation(np.array([0.1, 0.2, 0.3])), np.array([0, 0.1, 4]))
    before = render(gaussians, viewmat, degree)
    assert before.std() > 0.05
    for vector in ([0.4, -2.1, 1.0], [np.pi, 0, 0], [0, 0, 0]):
        turn = make_rotation(np.array(vector, float))
        rotated = rotate_gaussians(gaussians, turn)
        after = render(rotated, viewmat @ make_rigid(turn.T, np.zeros(3)), degree)
        np.testing.assert_allclose(after, before, atol=1e-5)
        if degree:  # the harmonics matter: without them the picture differs
            still = rotated.replace(sh_rest=gaussians.sh_rest)
            wrong = render(still, viewmat @ make_rigid(turn.T, np.zeros(3)), degree)
            assert np.any(vector) == (np.abs(wrong - before).max() > 0.01)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_matrices_of_harmonics_form_a_group(degree):
    a, b = make_rotation(np.array([0.3, 1.1, -0.5])), make_rotation(np.array([-2.0, 0.2, 0.9]))
    product = rotate_harmonics(a, degree=degree) @ rotate_harmonics(b, degree=degree)
    np.testing.assert_allclose(product, rotate_harmonics(a @ b, degree=degree), atol=1e-12)
    np.testing.assert_allclose(rotate_harmonics(np.eye(3), degree=degree), np.eye(2 * degree + 1), atol=1e-12)
    matrix = rotate_harmonics(a, degree=degree)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2 * degree + 1), atol=1e-12)
