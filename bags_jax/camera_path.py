"""Camera paths for films."""

import numpy as np
from jaxtyping import Float

from bags_jax.data.poses import camera_centers

RADIUS_SHARE = 0.6  # of the spread of the training cameras


def spiral(
    viewmats: Float[np.ndarray, "V 4 4"], *, focus: Float[np.ndarray, "3"], num_frames: int
) -> Float[np.ndarray, "F 4 4"]:
    """A closed loop about the mean training camera that keeps looking at one point (after Mildenhall et al. 2019).

    Args:
      viewmats: cam_from_world of the training cameras, OpenCV axes.
      focus: the point that is looked at, world frame, scene units.
      num_frames: cameras on the loop.
    Returns:
      cam_from_world of each frame.
    """
    centers = camera_centers(viewmats)
    middle = centers.mean(axis=0)
    down = viewmats[:, 1, :3].mean(axis=0)
    home = look_at(middle, focus, down)[:3, :3]
    reach = RADIUS_SHARE * np.percentile(np.abs((centers - middle) @ home.T), 80, axis=0)
    angles = 2.0 * np.pi * np.arange(num_frames) / num_frames
    waves = np.stack([np.cos(angles), np.sin(angles), 0.5 * np.sin(2.0 * angles)], axis=-1)
    return np.stack([look_at(middle + (reach * wave) @ home, focus, down) for wave in waves])


def look_at(
    center: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], down: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """cam_from_world of a camera at `center` that sees `target` in the middle of its image, `down` pointing down."""
    ahead = target - center
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
    right = np.cross(down, ahead)
    right = right / max(float(np.linalg.norm(right)), 1e-9)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ center
    return viewmat.astype(np.float32)


def focus_point(viewmats: Float[np.ndarray, "V 4 4"], points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "3"]:
    """A point on the mean viewing axis, as far away as the middle one of the points in front of the cameras."""
    centers = camera_centers(viewmats)
    middle, ahead = centers.mean(axis=0), viewmats[:, 2, :3].mean(axis=0)
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
    distances = (points - middle) @ ahead
    distances = distances[distances > 0]
    return (middle + ahead * (np.median(distances) if distances.size else 1.0)).astype(np.float32)
