"""Camera paths for films."""

import numpy as np
from jaxtyping import Float

from bags_jax.data.poses import locate_cameras, look_at

RADIUS_SHARE = 0.6  # of the spread of the training cameras
AROUND = 0.5  # length of the mean direction from a point to the cameras around it: 0 for a ring, 0.64 for half of one
AIM = 0.7  # cosine of the angle between where a camera looks and where the point is


def loop(
    viewmats: Float[np.ndarray, "V 4 4"], points: Float[np.ndarray, "P 3"], *, num_frames: int
) -> Float[np.ndarray, "F 4 4"]:
    """A closed loop: about the mean training camera, or around the subject where the training cameras stand around it.

    Args:
      viewmats: cam_from_world of the training cameras, OpenCV axes.
      points: of the scene, world frame.
      num_frames: cameras on the loop.
    Returns:
      cam_from_world of each frame.
    """
    subject = meeting_point(viewmats)
    if stand_around(viewmats, subject):
        return orbit(viewmats, subject=subject, num_frames=num_frames)
    return spiral(viewmats, focus=focus_point(viewmats, points), num_frames=num_frames)


def meeting_point(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "3"]:
    """The point that is nearest to all viewing axes, in least squares; where they are parallel, at an arbitrary depth."""
    ahead, centers = viewmats[:, 2, :3].astype(np.float64), locate_cameras(viewmats).astype(np.float64)
    across = np.eye(3) - ahead[:, :, None] * ahead[:, None, :]
    return np.linalg.lstsq(across.sum(axis=0), np.einsum("vij,vj->i", across, centers), rcond=1e-6)[0]


def stand_around(viewmats: Float[np.ndarray, "V 4 4"], subject: Float[np.ndarray, "3"]) -> bool:
    """Whether most cameras look at a point, and they stand on all sides of it, seen from above."""
    offsets = locate_cameras(viewmats) - subject
    aim = np.einsum("vi,vi->v", viewmats[:, 2, :3], -_unit(offsets))
    level = _unit(_level(offsets, _vertical(viewmats)))
    return bool(np.median(aim) > AIM and np.linalg.norm(level.mean(axis=0)) < AROUND)


def orbit(
    viewmats: Float[np.ndarray, "V 4 4"], *, subject: Float[np.ndarray, "3"], num_frames: int
) -> Float[np.ndarray, "F 4 4"]:
    """A circle around a point that keeps looking at it, as far away and as high as the middle one of the training cameras.

    Args and Returns: as of `loop`.
    """
    down, offsets = _vertical(viewmats), locate_cameras(viewmats) - subject
    level = _level(offsets, down)
    radius, depth = np.median(np.linalg.norm(level, axis=-1)), np.median(offsets @ down)
    first = _unit(level[np.argmax(np.linalg.norm(level, axis=-1))])
    second = np.cross(down, first)
    angles = 2.0 * np.pi * np.arange(num_frames)[:, None] / num_frames
    centers = subject + depth * down + radius * (np.cos(angles) * first + np.sin(angles) * second)
    return np.stack([look_at(center, subject, down) for center in centers]).astype(np.float32)


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
    centers = locate_cameras(viewmats)
    middle = centers.mean(axis=0)
    down = _down(viewmats)
    home = look_at(middle, focus, down)[:3, :3].astype(np.float32)
    reach = RADIUS_SHARE * np.percentile(np.abs((centers - middle) @ home.T), 80, axis=0)
    angles = 2.0 * np.pi * np.arange(num_frames) / num_frames
    waves = np.stack([np.cos(angles), np.sin(angles), 0.5 * np.sin(2.0 * angles)], axis=-1)
    return np.stack([look_at(middle + (reach * wave) @ home, focus, down) for wave in waves]).astype(np.float32)


def focus_point(viewmats: Float[np.ndarray, "V 4 4"], points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "3"]:
    """A point on the mean viewing axis, as far away as the middle one of the points in front of the cameras."""
    centers = locate_cameras(viewmats)
    middle, ahead = centers.mean(axis=0), _mean_direction(viewmats[:, 2, :3])
    distances = (points - middle) @ ahead
    distances = distances[distances > 0]
    return (middle + ahead * (np.median(distances) if distances.size else 1.0)).astype(np.float32)


def _unit(vectors: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "*S 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _mean_direction(directions: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "3"]:
    """Of unit vectors; the first of them where they cancel."""
    mean = directions.mean(axis=0)
    return _unit(mean) if np.linalg.norm(mean) > 1e-3 else directions[0]


def _down(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "3"]:
    return _mean_direction(viewmats[:, 1, :3])


def _vertical(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "3"]:
    """Down, as the direction that is square to what is right in the pictures: photographers hold cameras level."""
    right = viewmats[:, 0, :3].astype(np.float64)
    axis = np.linalg.eigh(right.T @ right)[1][:, 0]
    return axis if axis @ _down(viewmats) > 0 else -axis


def _level(offsets: Float[np.ndarray, "V 3"], down: Float[np.ndarray, "3"]) -> Float[np.ndarray, "V 3"]:
    """The part of each that is neither up nor down."""
    return offsets - (offsets @ down)[:, None] * down
