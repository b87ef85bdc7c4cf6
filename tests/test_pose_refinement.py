"""Refined poses: corrections in pixels, and the gauge: the seven motions of scene and cameras that change no image."""

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax.scene.pose_refinement import corrected_camera, hold_gauge, make_pose_frame
from bags_jax.structs import Camera
from tests.splats import rotation

NUM_VIEWS, FOCAL = 5, 200.0
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(40, 3)) + [0, 0, 6]


def make_cameras() -> Camera:
    viewmats = np.tile(np.eye(4), (NUM_VIEWS, 1, 1))
    for i, viewmat in enumerate(viewmats):
        viewmat[:3, :3] = rotation(RNG.normal(size=3), 0.2 * i)
        viewmat[:3, 3] = RNG.normal(size=3) * 0.5
    K = np.array([[FOCAL, 0, 160], [0, FOCAL, 120], [0, 0, 1]])
    return Camera(jnp.asarray(viewmats, jnp.float32), jnp.asarray(np.tile(K, (NUM_VIEWS, 1, 1)), jnp.float32))


CAMERAS = make_cameras()
FRAME = make_pose_frame(np.asarray(CAMERAS.viewmat), np.asarray(CAMERAS.K), POINTS)


EVEN = jnp.ones(NUM_VIEWS)


def screen(camera: Camera, points) -> np.ndarray:
    """Pixel positions, float64."""
    in_cam = np.asarray(camera.viewmat, np.float64) @ np.concatenate([points, np.ones((len(points), 1))], axis=1).T
    return (np.asarray(camera.K, np.float64) @ in_cam[:3] / in_cam[2])[:2].T


def corrected(corrections) -> Camera:
    return jax.vmap(corrected_camera, in_axes=(0, 0, None))(CAMERAS, jnp.asarray(corrections, jnp.float32), FRAME)


def each(cameras: Camera):
    return [jax.tree.map(lambda x, i=i: x[i], cameras) for i in range(NUM_VIEWS)]


def test_correction_moves_the_image_by_as_many_pixels():
    axis_points = np.array([[0.0, 0.0, 5.0]])
    camera = Camera(jnp.eye(4), CAMERAS.K[0])
    frame = make_pose_frame(np.stack([np.eye(4)] * 2), np.asarray(CAMERAS.K[:2]), axis_points)
    for k, moved in ((0, (0, -1)), (1, (1, 0)), (3, (1, 0)), (4, (0, 1))):
        new = corrected_camera(camera, jnp.zeros(6).at[k].set(1.0), frame)
        np.testing.assert_allclose(screen(new, axis_points) - screen(camera, axis_points), [moved], atol=1e-3)


def test_correction_is_a_rigid_motion():
    turned = np.asarray(corrected(RNG.normal(size=(NUM_VIEWS, 6)) * 20).viewmat)[:, :3, :3]
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(3), (NUM_VIEWS, 1, 1)), atol=1e-5)


def test_gauge_is_a_similarity_of_the_whole_scene():
    """Each of the seven directions, as corrections, moves the pixels as a similarity of the points does."""
    for k in range(7):
        corrections = np.asarray(FRAME.gauge[..., k]) * 0.02
        before = [screen(camera, POINTS) for camera in each(CAMERAS)]
        after = [screen(camera, POINTS) for camera in each(corrected(corrections))]
        flows = np.concatenate([a - b for a, b in zip(after, before, strict=True)]).ravel()
        assert np.abs(flows).max() > 1e-4
        columns = []
        for motion in range(7):
            step = np.zeros(7)
            step[motion] = 1e-5
            moved = POINTS + np.cross(step[:3], POINTS) + step[3:6] + step[6] * POINTS
            shift = [screen(camera, moved) - screen(camera, POINTS) for camera in each(CAMERAS)]
            columns.append(np.concatenate(shift).ravel() / 1e-5)
        basis = np.stack(columns, axis=1)
        explained = basis @ np.linalg.lstsq(basis, flows, rcond=None)[0]
        np.testing.assert_allclose(flows, explained, atol=0.01 * np.abs(flows).max())


def test_held_corrections_are_orthogonal_to_the_gauge_and_keep_the_rest():
    corrections = jnp.asarray(RNG.normal(size=(NUM_VIEWS, 6)), jnp.float32)
    held = hold_gauge(corrections, EVEN, FRAME)
    np.testing.assert_allclose(jnp.einsum("vik,vi->k", FRAME.gauge, held), 0.0, atol=1e-5)
    np.testing.assert_allclose(hold_gauge(held, EVEN, FRAME), held, atol=1e-5)
    moved = corrections + jnp.einsum("vik,k->vi", FRAME.gauge, jnp.arange(7.0))
    np.testing.assert_allclose(hold_gauge(moved, EVEN, FRAME), held, atol=1e-4)


def test_without_points_the_given_depth_is_used():
    frame = make_pose_frame(np.asarray(CAMERAS.viewmat), np.asarray(CAMERAS.K), np.zeros((0, 3)), depth=3.0)
    np.testing.assert_allclose(frame.units, np.repeat([1 / FOCAL, 3 / FOCAL], 3), rtol=1e-6)


def test_one_camera_is_all_gauge():
    frame = make_pose_frame(np.asarray(CAMERAS.viewmat[:1]), np.asarray(CAMERAS.K[:1]), POINTS)
    np.testing.assert_allclose(hold_gauge(jnp.arange(6.0)[None], jnp.ones(1), frame), 0.0, atol=1e-4)


def test_cameras_with_one_centre_have_six_gauge_directions():
    """On a tripod, scaling and translation of the world are the same motion; rounding must not add a seventh direction."""
    viewmats = np.array(CAMERAS.viewmat)
    viewmats[:, :3, 3] = -viewmats[:, :3, :3] @ np.array([0.3, -0.2, 0.5])
    frame = make_pose_frame(viewmats, np.asarray(CAMERAS.K), POINTS)
    norms = np.linalg.norm(np.asarray(frame.gauge).reshape(-1, 7), axis=0)
    np.testing.assert_allclose(np.sort(norms), [0] + [1] * 6, atol=1e-5)
    assert np.isfinite(hold_gauge(jnp.ones((NUM_VIEWS, 6)), EVEN, frame)).all()


def test_matrix_products_have_full_precision():
    """A view matrix in TF32 or bf16, the default on accelerators, would move the image by pixels."""
    camera = jax.tree.map(lambda x: x[0], CAMERAS)
    assert "dot_general" not in str(jax.make_jaxpr(lambda c: corrected_camera(camera, c, FRAME))(jnp.zeros(6)))
    program = str(jax.make_jaxpr(lambda c: hold_gauge(c, EVEN, FRAME))(jnp.zeros((NUM_VIEWS, 6))))
    assert program.count("dot_general[") == program.count("precision=(Precision.HIGHEST") == 1


def test_gradient_is_finite_at_zero():
    def total(correction):
        return jnp.sum(corrected_camera(jax.tree.map(lambda x: x[0], CAMERAS), correction, FRAME).viewmat ** 2)

    assert np.isfinite(jax.grad(total)(jnp.zeros(6))).all()


def test_sharp_views_keep_their_poses():
    """All corrections are a motion of the whole scene, except those of two sharp views: the sharp views hold the gauge."""
    blur_px = jnp.full(NUM_VIEWS, 50.0).at[jnp.array([1, 3])].set(0.0)
    # Two cameras have twelve numbers: more than the seven of the gauge.
    drift = jnp.einsum("vik,k->vi", FRAME.gauge, jnp.arange(1.0, 8.0))
    others = drift.at[jnp.array([1, 3])].set(0.0)
    held = hold_gauge(others, blur_px, FRAME)
    np.testing.assert_allclose(held[jnp.array([1, 3])], 0.0, atol=0.02)
    np.testing.assert_allclose(held, others, atol=0.02)
    np.testing.assert_allclose(hold_gauge(drift, blur_px, FRAME), 0.0, atol=1e-3)
