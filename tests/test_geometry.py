"""Tests EWA projection against its formulas in float64, rotations, and the 3D smoothing filter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splats import HEIGHT, KINDS, WIDTH, make_splats, project_splats, rotation

from bags_jax.geometry import (
    CAMERA_MODELS,
    apply_filter_3d,
    camera_center,
    project,
    rotation_from_quat,
    smoothing_filter,
)
from bags_jax.structs import Camera, Projected


def covariances(splats) -> np.ndarray:
    """R S S^T R^T of each Gaussian, float64."""
    found = []
    for (w, x, y, z), scale in zip(np.asarray(splats.quats, float), np.asarray(splats.scales, float)):
        axes = rotation([x, y, z], 2 * np.arctan2(np.linalg.norm([x, y, z]), w)) * scale
        found.append(axes @ axes.T)
    return np.array(found)


def project_numpy(splats, camera: int, *, eps_2d: float, antialiased: bool, camera_model: str = "pinhole"):
    """Zwicker et al. 2001 with the full Jacobian, float64."""
    means, _, _, opacities, _, viewmats, Ks = (np.asarray(x, np.float64) for x in splats)
    world, K = viewmats[camera], Ks[camera]
    rows = []
    for mean, cov_world, opacity in zip(means, covariances(splats), opacities):
        X, Y, Z = world[:3, :3] @ mean + world[:3, 3]
        border_x, border_y = 0.15 * WIDTH / K[0, 0], 0.15 * HEIGHT / K[1, 1]
        x_lin = np.clip(X / Z, -K[0, 2] / K[0, 0] - border_x, (WIDTH - K[0, 2]) / K[0, 0] + border_x) * Z
        y_lin = np.clip(Y / Z, -K[1, 2] / K[1, 1] - border_y, (HEIGHT - K[1, 2]) / K[1, 1] + border_y) * Z
        J = K[:2, :2] @ np.array([[1 / Z, 0, -x_lin / Z**2], [0, 1 / Z, -y_lin / Z**2]])
        center = K[:2] @ [X / Z, Y / Z, 1]
        if camera_model == "ortho":
            J, center = K[:2, :2] @ np.eye(2, 3), K[:2] @ [X, Y, 1]
        cov_before = J @ world[:3, :3] @ cov_world @ world[:3, :3].T @ J.T
        cov = cov_before + eps_2d * np.eye(2)
        if antialiased:
            opacity *= np.sqrt(max(0.0, np.linalg.det(cov_before) / np.linalg.det(cov)))
        radii = np.sqrt(max(0.0, 2 * np.log(max(opacity * 255, 1e-9)))) * np.sqrt(np.diag(cov))
        on_screen = (center + radii > 0).all() and (center - radii < [WIDTH, HEIGHT]).all()
        shown = 0.01 < Z and opacity > 1 / 255 and on_screen
        conic = np.linalg.inv(cov)
        rows.append((shown, Z, opacity, *center, *cov[[0, 0, 1], [0, 1, 1]], *conic[[0, 0, 1], [0, 1, 1]], *radii))
    return np.array(rows)


def assert_projected(ours: Projected, expected: np.ndarray, *, rtol: float) -> None:
    shown = expected[:, 0] > 0
    np.testing.assert_array_equal(ours.radii_px[:, 0] > 0, shown)
    assert shown.any()
    parts = ours.depths[:, None], ours.opacities[:, None], ours.means_px, ours.covs_px, ours.conics, ours.radii_px
    parts = np.concatenate(parts, axis=1)[shown]
    for columns in (slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 7), slice(7, 10), slice(10, 12)):
        a, b = parts[:, columns], expected[shown, 1:][:, columns]
        size = np.abs(b).max(axis=1, keepdims=True)  # compare an off-diagonal near 0 with its matrix
        assert (np.abs(a - b) <= rtol * size + 1e-6).all(), (columns, np.max(np.abs(a - b) / (size + 1e-9)))


@pytest.mark.parametrize("eps_2d, antialiased", [(0.3, False), (0.3, True), (0.1, True), (0.0, False)])
@pytest.mark.parametrize("kind", KINDS)
def test_projection_equals_its_formulas(kind, eps_2d, antialiased):
    splats = make_splats(kind)
    # Without the 2D filter the inverse of a needle amplifies rounding by its axis ratio squared.
    rtol = 2e-2 if eps_2d == 0 and kind == "needles" else 2e-4
    for camera in range(2):
        view = Camera(splats.viewmats[camera], splats.Ks[camera])
        ours = project(*splats[:4], view, width=WIDTH, height=HEIGHT, eps_2d=eps_2d, antialiased=antialiased)
        assert_projected(ours, project_numpy(splats, camera, eps_2d=eps_2d, antialiased=antialiased), rtol=rtol)


@pytest.mark.parametrize("kind", ["typical", "needles", "off_screen"])
def test_orthographic_projection_equals_its_formulas(kind):
    splats = make_splats(kind)
    splats = splats._replace(Ks=splats.Ks.at[:, :2, :2].multiply(0.25))  # 4 units away: the same size on the screen
    options = {"eps_2d": 0.3, "antialiased": True, "camera_model": "ortho"}
    for camera in range(2):
        view = Camera(splats.viewmats[camera], splats.Ks[camera])
        ours = project(*splats[:4], view, width=WIDTH, height=HEIGHT, **options)
        assert_projected(ours, project_numpy(splats, camera, **options), rtol=2e-4)


@pytest.mark.parametrize("camera_model", CAMERA_MODELS)
@pytest.mark.parametrize("kind", ["typical", "needles", "giants"])
def test_covariances_project_like_quaternions_and_scales(kind, camera_model):
    splats = make_splats(kind)
    splats = splats._replace(Ks=splats.Ks.at[:, :2, :2].multiply(0.25)) if camera_model == "ortho" else splats
    options = {"eps_2d": 0.3, "antialiased": True, "camera_model": camera_model}
    view = Camera(splats.viewmats[1], splats.Ks[1])
    covars = jnp.asarray(covariances(splats), jnp.float32)
    ours = project(
        splats.means, None, None, splats.opacities, view, width=WIDTH, height=HEIGHT, covars=covars, **options
    )
    # float32 covariances hold the thin axis of a needle to 1e-7 of the long axis squared.
    rtol = 2e-2 if kind == "needles" else 1e-3
    assert_projected(ours, project_numpy(splats, 1, **options), rtol=rtol)


def test_covariances_have_the_gradient_of_quaternions_and_scales():
    splats = make_splats()
    view = Camera(splats.viewmats[1], splats.Ks[1])

    def total(means, quats, scales, covars, viewmat):
        seen = project(
            means, quats, scales, splats.opacities, Camera(viewmat, view.K), width=WIDTH, height=HEIGHT, covars=covars
        )
        return sum(jnp.sum(jnp.sin(x)) for x in (seen.means_px, seen.conics, seen.depths))

    def by_covariance(means, quats, scales, viewmat):
        axes = rotation_from_quat(quats) * scales[:, None, :]
        return total(means, None, None, jnp.einsum("nij,nkj->nik", axes, axes), viewmat)

    arguments = splats.means, splats.quats, splats.scales
    expected = jax.jit(jax.grad(total, argnums=(0, 1, 2, 4)))(*arguments, None, view.viewmat)
    found = jax.jit(jax.grad(by_covariance, argnums=(0, 1, 2, 3)))(*arguments, view.viewmat)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(b).max()))


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
def _covariance_gradients(means, covars, antialiased: bool):
    splats = make_splats()
    view, size = Camera(splats.viewmats[0], splats.Ks[0]), {"width": WIDTH, "height": HEIGHT}
    seen = project(means, None, None, splats.opacities, view, covars=covars, antialiased=antialiased, **size)
    return sum(jnp.sum(x) for x in (seen.means_px, seen.conics, seen.opacities)), seen.radii_px


@pytest.mark.parametrize(
    "covar, shown",
    [
        (np.diag([0.04, 0.04, 0.04]), True),
        (np.diag([0.04, 0.04, 0.0]), True),  # flat
        (np.diag([0.04, 0.0, 0.0]), True),  # a line
        (np.zeros((3, 3)), True),  # a point: the 2D filter alone
        (np.diag([1e-36, 1e-36, 1e-36]), True),
        (np.diag([0.04, -0.04, 0.04]), False),
        (np.full((3, 3), -1.0), False),
        (np.diag([0.04, np.nan, 0.04]), False),
        (np.diag([np.inf, 0.04, 0.04]), False),
        (np.diag([1e30, 1e30, 1e30]), False),
    ],
)
def test_any_covariance_leaves_gradients_finite(covar, shown):
    splats = make_splats()
    covars = jnp.asarray(covariances(splats), jnp.float32).at[0].set(covar)
    means = splats.means.at[0].set(jnp.array([0.0, 0.0, 4.0]))
    for antialiased in (False, True):
        gradients, radii = _covariance_gradients(means, covars, antialiased)
        assert all(bool(jnp.isfinite(g).all()) for g in gradients)
        assert bool(radii[0, 0] > 0) is shown or antialiased  # antialiased: without area the opacity is 0


def test_upper_triangle_of_covariances_counts():
    splats = make_splats()
    covars = jnp.asarray(covariances(splats), jnp.float32)
    view = Camera(splats.viewmats[1], splats.Ks[1])
    draw = lambda covars: project(splats.means, None, None, splats.opacities, view, width=9, height=9, covars=covars)
    jax.tree.map(np.testing.assert_array_equal, draw(covars), draw(jnp.triu(covars)))


@pytest.mark.parametrize("radius_clip", [4.0, 5.5])
def test_radius_clip_culls_small_gaussians(radius_clip):
    splats = make_splats()
    view = Camera(splats.viewmats[0], splats.Ks[0])
    every = project(*splats[:4], view, width=WIDTH, height=HEIGHT)
    large = project(*splats[:4], view, width=WIDTH, height=HEIGHT, radius_clip=radius_clip)
    stays = (np.ceil(every.radii_px) > radius_clip).any(axis=1)
    assert 0 < stays.sum() < (np.asarray(every.radii_px[:, 0]) > 0).sum()
    np.testing.assert_array_equal(large.radii_px, np.where(stays[:, None], every.radii_px, 0.0))


def test_defaults_equal_those_of_gsplat():
    splats = make_splats()
    view = Camera(splats.viewmats[0], splats.Ks[0])
    default = project(*splats[:4], view, width=WIDTH, height=HEIGHT)
    stated = project(*splats[:4], view, width=WIDTH, height=HEIGHT, eps_2d=0.3, near_plane=0.01, far_plane=1e10)
    jax.tree.map(np.testing.assert_array_equal, default, stated)


def test_depth_range_culls():
    splats = make_splats()
    view = Camera(splats.viewmats[0], splats.Ks[0])
    seen = project(*splats[:4], view, width=WIDTH, height=HEIGHT, near_plane=3.5, far_plane=4.5)
    depths = np.asarray(splats.means[:, 2])
    outside = (depths <= 3.5) | (depths >= 4.5)
    assert outside.any() and not outside.all()
    assert not seen.radii_px[outside].any() and seen.radii_px[~outside].any()


def test_quaternion_norm_does_not_matter():
    quats = make_splats().quats
    np.testing.assert_allclose(rotation_from_quat(quats * 1e-4), rotation_from_quat(quats * 1e4), atol=1e-5)
    turned = rotation_from_quat(jnp.array([[np.cos(0.3), 0.0, 0.0, np.sin(0.3)]]))[0]
    np.testing.assert_allclose(turned, rotation([0, 0, 1], 0.6), atol=1e-6)
    np.testing.assert_allclose(rotation_from_quat(jnp.zeros((1, 4)))[0], np.eye(3))
    assert np.isfinite(jax.grad(lambda q: rotation_from_quat(q).sum())(jnp.zeros((1, 4)))).all()


def test_rotations_are_orthogonal():
    R = np.asarray(rotation_from_quat(make_splats().quats), float)
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(R), 1, atol=1e-5)


def test_camera_center_is_seen_at_the_origin():
    viewmat = make_splats().viewmats[1]
    np.testing.assert_allclose(viewmat @ jnp.append(camera_center(viewmat), 1.0), [0, 0, 0, 1], atol=1e-6)


def test_culled_has_no_gradient():
    splats = make_splats("behind")

    def total(splats):
        seen = project_splats(splats, 0)
        return sum(jnp.sum(x) for x in (seen.means_px, seen.conics, seen.opacities, seen.depths))

    gradients = jax.grad(total)(splats)
    behind = np.asarray(splats.means[:, 2]) < 0
    for gradient in gradients[:4]:
        assert np.isfinite(gradient).all() and not gradient[behind].any() and gradient[~behind].any()


def test_gradients_are_equal_with_camera_numbers_per_gaussian(monkeypatch):
    """On a GPU the camera's numbers become arrays [N]: values, gradients, forward mode, several cameras under vmap."""
    splats = make_splats("typical")

    def total(splats):
        def of_one(viewmat, K):
            seen = project(*splats[:4], Camera(viewmat, K), width=WIDTH, height=HEIGHT, antialiased=True)
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(seen))

        return jnp.sum(jax.vmap(of_one)(splats.viewmats, splats.Ks))

    expected = jax.value_and_grad(total)(splats)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = jax.value_and_grad(total)(splats)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(b))))
    _, along = jax.jvp(total, (splats,), (expected[1],))
    np.testing.assert_allclose(along, sum(jnp.vdot(x, x) for x in jax.tree.leaves(expected[1])), rtol=1e-3)


def test_smoothing_filter_uses_the_nearest_camera_that_sees_the_point():
    turned = np.eye(4)
    turned[:3, :3] = rotation([0, 1, 0], np.pi)  # looks back
    Ks = np.array([[[f, 0, 32], [0, f, 24], [0, 0, 1]] for f in (50, 80)])
    cameras = Camera(jnp.asarray([np.eye(4), turned], jnp.float32), jnp.asarray(Ks, jnp.float32))
    means = jnp.array([[0, 0, 2.0], [0, 0, -4.0], [0, 0, 0.1], [100.0, 0, 2.0], [0, 0, 9.0]])
    alive = jnp.array([True, True, True, True, False])
    sizes = jnp.array([[48, 64], [48, 64]])
    found = smoothing_filter(means, alive, cameras, sizes)
    unseen = max(2 / 50, 4 / 80)  # largest among alive rows
    np.testing.assert_allclose(found, np.sqrt(0.2) * np.array([2 / 50, 4 / 80, unseen, unseen, 9 / 50]), rtol=1e-6)
    edge = 2.0 * (32 + 0.15 * 64) / 50  # border of the image enlarged by 15 % on each side
    beside = smoothing_filter(
        jnp.array([[edge - 0.01, 0, 2.0], [edge + 0.01, 0, 2.0], [0, 0, -4.0]]), alive[:3], cameras, sizes
    )
    np.testing.assert_allclose(beside, np.sqrt(0.2) * np.array([2 / 50, 4 / 80, 4 / 80]), rtol=1e-6)


def test_smoothing_filter_uses_the_focal_length_of_x():
    """Mip-Splatting's code uses fx, also if pixels are not square. Whether a point is in the image depends on both."""
    K = jnp.array([[[50.0, 0, 32], [0, 80.0, 24], [0, 0, 1]]])
    edge = 2.0 * (24 + 0.15 * 48) / 80
    means = jnp.array([[0, 0, 2.0], [0, edge - 0.01, 2.0], [0, edge + 0.01, 1.99], [0, 0, 4.0]])
    found = smoothing_filter(means, jnp.ones(4, bool), Camera(jnp.eye(4)[None], K), jnp.array([[48, 64]]))
    np.testing.assert_allclose(found, np.sqrt(0.2) * np.array([2, 2, 4, 4]) / 50, rtol=1e-6)


def test_smoothing_filter_scales_with_the_world():
    K = jnp.array([[[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]]])
    sizes, means = jnp.array([[48, 64]]), jnp.array([[0, 0, 1.0], [0.3, 0, 1.5], [0, 0, 0.1]])
    cameras = Camera(jnp.eye(4)[None], K)
    one = smoothing_filter(means, jnp.ones(3, bool), cameras, sizes, near=0.2)
    for unit in (0.01, 30.0):
        other = smoothing_filter(unit * means, jnp.ones(3, bool), cameras, sizes, near=0.2 * unit)
        np.testing.assert_allclose(other, unit * one, rtol=1e-5)


def test_filter_3d_adds_variances_and_keeps_the_integral():
    scales, opacities = jnp.array([[0.1, 0.2, 0.3]]), jnp.array([0.7])
    filtered, faded = apply_filter_3d(scales, opacities, jnp.array([0.2]))
    np.testing.assert_allclose(filtered**2, scales**2 + 0.04, rtol=1e-6)
    before, after = (float(o[0] * jnp.prod(s)) for o, s in ((opacities, scales), (faded, filtered)))
    np.testing.assert_allclose(before, after, rtol=1e-6)
    same, opaque = apply_filter_3d(scales, opacities, jnp.zeros(1))
    np.testing.assert_allclose(same, scales, rtol=1e-6)
    np.testing.assert_allclose(opaque, opacities, rtol=1e-6)


def test_bad_arguments_raise():
    splats = make_splats()
    view = Camera(splats.viewmats[0], splats.Ks[0])
    with pytest.raises(ValueError, match="eps_2d is -1"):
        project(*splats[:4], view, width=8, height=8, eps_2d=-1.0)
    with pytest.raises(ValueError, match="camera_model='fisheye' came, expected one of pinhole, ortho"):
        project(*splats[:4], view, width=8, height=8, camera_model="fisheye")
    with pytest.raises(ValueError, match="pass quats and scales, or covars"):
        project(splats.means, splats.quats, None, splats.opacities, view, width=8, height=8)
