"""What a camera sees of each Gaussian: the CUDA kernels against plain JAX, values and gradients.

Plain JAX itself is held to the oracle in tests/test_geometry.py and tests/test_spherical_harmonics.py. CUDA kernels run on a
GPU, or on the PTX emulator.
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.ops.see import see
from bags_jax.structs import Camera, Canvas, Gaussians
from tools import ptx_emulator

NUM, WIDTH, HEIGHT = 300, 64, 48  # more than two blocks
CANVAS = Canvas(WIDTH, HEIGHT, near_plane=0.2, eps_2d=0.1)


@contextlib.contextmanager
def cuda():
    if problem := ptx_emulator.find_problem():
        pytest.skip(problem)
    with ptx_emulator.emulated():
        yield


def make_scene(degree: int = 3, *, num: int = NUM, spread: float = 1.5):
    """Gaussians before a camera; some beyond the border, behind it, dead, or too faint to be seen."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    gaussians = Gaussians(
        means=normal(num, 3) * spread + jnp.array([[0.0, 0.0, 2.5]]),
        quats=normal(num, 4) * 2.0,
        log_scales=normal(num, 3) * 0.7 - 2.0,
        logit_opacities=normal(num) * 2.0 - 1.0,
        sh_dc=normal(num, 1, 3),
        sh_rest=0.3 * normal(num, (degree + 1) ** 2 - 1, 3),
    )
    viewmat = jnp.eye(4).at[:3, :3].set(_rotation(0.3)).at[:3, 3].set(jnp.array([0.1, -0.2, 0.4]))
    K = jnp.array([[55.0, 0.7, 31.0], [0.0, 52.0, 25.0], [0.0, 0.0, 1.0]])
    alive = jnp.asarray(rng.random(num) < 0.9)
    filter_3d = jnp.asarray(rng.random(num) * 0.03, jnp.float32)
    return gaussians, alive, filter_3d, Camera(viewmat, K)


def _rotation(angle: float):
    c, s = np.cos(angle), np.sin(angle)
    return jnp.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def compare(scene, *, degree=3, ray_depth=False):
    """Asserts that both agree in all that a camera sees, and in gradients of a random sum of it. Returns what is seen."""
    gaussians, alive, filter_3d, camera = scene
    canvas = CANVAS._replace(ray_depth=ray_depth)

    def total(gaussians, camera, backend, weights):
        seen = see(gaussians, alive, filter_3d, camera, canvas, sh_degree=degree, backend=backend)
        shown = (seen.projected.radii_px[:, :1] > 0).astype(jnp.float32)
        parts = seen.projected.means_px, seen.projected.conics, seen.projected.opacities[:, None], seen.features
        return sum(jnp.sum(shown * part * weight) for part, weight in zip(parts, weights, strict=True)), seen

    rng = np.random.default_rng(1)
    num = gaussians.means.shape[0]
    weights = [jnp.asarray(rng.normal(size=(num, width)), jnp.float32) for width in (2, 3, 1, 4)]
    differentiate = jax.grad(total, (0, 1), has_aux=True)
    expected_grads, expected = differentiate(gaussians, camera, "xla", weights)
    with cuda():
        grads, seen = differentiate(gaussians, camera, "cuda", weights)
    shown = np.asarray(expected.projected.radii_px[:, 0] > 0)
    np.testing.assert_array_equal(seen.projected.radii_px[:, 0] > 0, shown)
    for found, wanted in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found[shown], wanted[shown], rtol=2e-4, atol=1e-5)
    for (path, found), wanted in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        assert np.isfinite(found).all(), jax.tree_util.keystr(path)
        wanted = np.where(np.isfinite(wanted), wanted, found)  # NaN comes back from NaN in plain JAX
        largest = float(np.abs(wanted).max()) if wanted.size else 0.0
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))
    return seen


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_equals_plain_jax(degree):
    seen = compare(make_scene(degree))
    shown = seen.projected.radii_px[:, 0] > 0
    assert 50 < int(shown.sum()) < NUM - 50


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_harmonics_above_the_degree_in_use_count_as_0(degree):
    compare(make_scene(3), degree=jnp.int32(degree))


def test_depth_along_the_ray():
    compare(make_scene(1), ray_depth=True)


def test_a_single_gaussian_and_none_in_view():
    compare(make_scene(3, num=1, spread=0.0))
    gaussians, *others = make_scene(3)
    seen = compare((dataclasses.replace(gaussians, means=gaussians.means - 100.0), *others))
    assert not seen.projected.radii_px.any() and not seen.features.any()


@pytest.mark.parametrize(
    "name, value",
    [
        ("means", jnp.nan),
        ("means", 3e19),
        ("quats", 0.0),
        ("quats", jnp.inf),
        ("log_scales", 60.0),
        ("log_scales", -120.0),
        ("logit_opacities", 200.0),
        ("logit_opacities", -200.0),
        ("logit_opacities", jnp.nan),
    ],
)
def test_extreme_values_leave_gradients_finite(name, value):
    """And equal to those of plain JAX, where these are finite."""
    gaussians, alive, filter_3d, camera = make_scene(1)
    broken = dataclasses.replace(gaussians, **{name: getattr(gaussians, name).at[::7].set(value)})
    compare((broken, alive, filter_3d, camera), degree=1)
