"""Refined camera poses: a small rigid motion for each training view, with the gauge held.

The error of a pose that was estimated from a blurry photograph is a fraction of the blur. Plain splatting then averages the views;
with a blur model the kernels shift to compensate, and the scene drifts away from its coordinates. Each training camera therefore
has a correction of six numbers, in pixels: a rotation and a translation in the camera frame that move the image by so many px.

Moving, rotating and scaling scene and cameras together changes no image. The corrections are kept free of these seven directions
(the gauge), so that the scene stays where the capture put it and held-out cameras still fit. Sharp photographs determine their
poses better, so sharper views have larger weights there.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.errors import UserError
from bags_jax.geometry import rotation_from_quat
from bags_jax.numerics import EXACT
from bags_jax.scene.confidence import pose_trust
from bags_jax.settings import Settings
from bags_jax.structs import Camera, PoseFrame

SHUTTER_ANCHORS = ("start", "mid", "end")
MAX_POINTS = 10_000  # points of which the median depth is computed


def follow_shutter_anchor(settings: Settings) -> Settings:
    """Settings for a capture whose poses are those of the start or the end of each exposure.

    The kernels of such a view lie on one side of the pixel. loss.centroid would pull them to the middle, and the scene would move
    instead; so it is set to 0. The poses are not refined, because they are exact.

    Raises:
      UserError: an unknown moment.
    """
    anchor = settings.data.shutter_anchor
    if anchor not in SHUTTER_ANCHORS:
        raise UserError(
            f"config.data.shutter_anchor is {anchor!r}, expected one of {', '.join(SHUTTER_ANCHORS)}: the moment of an exposure "
            "at which the pose of a training view is known"
        )
    if anchor == "mid":
        return settings
    optim, loss = dataclasses.replace(settings.optim, poses=0.0), dataclasses.replace(settings.loss, centroid=0.0)
    return dataclasses.replace(settings, optim=optim, loss=loss)


def make_pose_frame(
    viewmats: Float[np.ndarray, "V 4 4"],
    Ks: Float[np.ndarray, "V 3 3"],
    points: Float[np.ndarray, "P 3"],
    *,
    depth: float = 1.0,
) -> PoseFrame:
    """Makes the frame for the training cameras of a capture.

    Args:
      viewmats: cam_from_world, OpenCV axes.
      Ks: intrinsics at full image scale, px.
      points: of the scene, world frame; their median depth converts translations to px.
      depth: replaces the median depth where no point is in front of a camera, scene units.
    """
    focal = float(np.mean(Ks[:, 0, 0]))
    some = points[:: max(1, len(points) // MAX_POINTS)]
    depths = np.einsum("vj,pj->vp", viewmats[:, 2, :3], some) + viewmats[:, 2, 3:]
    depth = float(np.median(depths[depths > 0])) if np.any(depths > 0) else depth
    units = np.repeat([1.0 / focal, depth / focal], 3)
    motions = np.stack([_seven_motions(viewmat) for viewmat in viewmats]) / units[:, None]
    directions, sizes, _ = np.linalg.svd(motions.reshape(-1, 7), full_matrices=False)
    # With one common camera centre, scaling equals a translation: fewer directions are independent, the others stay 0.
    gauge = np.zeros((6 * len(viewmats), 7))
    gauge[:, : directions.shape[1]] = directions * (sizes > 1e-6 * sizes[0])
    return PoseFrame(units=jnp.asarray(units, jnp.float32), gauge=jnp.asarray(gauge.reshape(-1, 6, 7), jnp.float32))


def _seven_motions(viewmat: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "6 7"]:
    """Twist of one camera that compensates a unit rotation (3), translation (3) or scaling (1) of the world.

    A motion x + s x + a cross x + u of the world is, in the camera frame with x = R^T (x_cam - t), a twist of rotation R a and
    translation -R a cross t + R u - s t, and a scaling about the camera centre, which changes no image.
    """
    rotation, t = viewmat[:3, :3].astype(np.float64), viewmat[:3, 3].astype(np.float64)
    turns = np.concatenate([rotation, -np.cross(rotation.T, t).T])
    shifts = np.concatenate([np.zeros((3, 3)), rotation])
    scaling = np.concatenate([np.zeros(3), -t])[:, None]
    return np.concatenate([turns, shifts, scaling], axis=1)


def corrected_camera(camera: Camera, correction_px: Float[Array, "6"], frame: PoseFrame) -> Camera:
    """The camera after its correction: rotated about its centre, then translated, in its own frame.

    The rotation vector w becomes the quaternion (1, w / 2): its angle is |w| to within |w|^3 / 12, and it is smooth at 0.
    """
    turn, shift = jnp.split(correction_px * frame.units, 2)
    rotation = rotation_from_quat(jnp.concatenate([jnp.ones(1), 0.5 * turn]))
    rigid = jnp.concatenate([jnp.concatenate([rotation, shift[:, None]], axis=1), jnp.eye(4)[3:]])
    product = jnp.sum(rigid[:, :, None] * camera.viewmat[None], axis=1)  # on a GPU a matrix product is a launch
    return Camera(viewmat=product, K=camera.K)


def hold_gauge(
    corrections_px: Float[Array, "V 6"], blur_px: Float[Array, "V"], frame: PoseFrame
) -> Float[Array, "V 6"]:
    """Removes from the corrections their common motion, which would move the scene without changing any image.

    Args:
      corrections_px: of the training cameras.
      blur_px: RMS width of the blur of each view, px; 0: no step yet.
      frame: see PoseFrame.
    Returns:
      the corrections minus the nearest motion of the whole scene, in weighted least squares.
    """
    weighted = pose_trust(blur_px)[:, None, None] * frame.gauge
    known = jnp.concatenate([frame.gauge, corrections_px[..., None]], axis=-1)
    equations = jnp.sum(weighted[..., :, None] * known[..., None, :], axis=(0, 1))  # normal matrix, right side
    absent = jnp.where(jnp.diagonal(equations) > 0.0, 0.0, 1.0)
    along = _solve(equations + absent[:, None] * jnp.eye(len(absent), len(absent) + 1))
    return corrections_px - jnp.einsum("vik,k->vi", frame.gauge, along, precision=EXACT)


def _solve(equations: Float[Array, "k k+1"]) -> Float[Array, "k"]:
    """Solves a small system, positive definite matrix and right side, by Gauss-Jordan elimination.

    Without pivoting, which such a matrix does not need. On a GPU Cholesky's method is three library calls.
    """
    places = jnp.arange(equations.shape[0])
    for k in range(equations.shape[0]):
        pivot = equations[k] / equations[k, k]
        equations = jnp.where((places == k)[:, None], pivot[None], equations - equations[:, k, None] * pivot[None])
    return equations[:, -1]
