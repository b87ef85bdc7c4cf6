"""Camera paths for videos."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from bags_jax.data.poses import locate_cameras, look_at

RADIUS_SHARE = 0.6  # radius of the spiral, as a fraction of the spread of the training cameras
# Cameras surround a point if the mean of the unit vectors from it to them is shorter: 0 for a ring, 0.64 for half a ring.
AROUND = 0.5
AIM = 0.7  # a camera looks at a point if the cosine of the angle between its axis and the point is larger


@dataclasses.dataclass(frozen=True)
class CameraPath:
    """The F cameras of a film."""

    viewmats: Float[np.ndarray, "F 4 4"]  # cam_from_world, OpenCV axes
    Ks: Float[np.ndarray, "F 3 3"]  # intrinsics, px
    sizes: Int[np.ndarray, "F 2"]  # height and width, px
    ids: Int[np.ndarray, "F"] | None = None  # the views of the scene whose cameras these are; None: other cameras
    fps: float | None = None  # frames per second that a file asks for


def loop(
    viewmats: Float[np.ndarray, "V 4 4"], points: Float[np.ndarray, "P 3"], *, num_frames: int
) -> Float[np.ndarray, "F 4 4"]:
    """Returns a closed camera path: an orbit if the training cameras surround a subject, else a spiral.

    Args:
      viewmats: cam_from_world of the training cameras, OpenCV axes.
      points: points of the scene, world frame, scene units.
      num_frames: cameras on the path.
    Returns:
      cam_from_world of each frame.
    """
    subject = meeting_point(viewmats)
    if stand_around(viewmats, subject):
        return orbit(viewmats, subject=subject, down=_vertical(viewmats), num_frames=num_frames)
    return spiral(viewmats, focus=focus_point(viewmats, points), num_frames=num_frames)


def meeting_point(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "3"]:
    """Returns the point nearest to all viewing axes (least squares); its depth is arbitrary if the axes are parallel."""
    ahead, centers = viewmats[:, 2, :3].astype(np.float64), locate_cameras(viewmats).astype(np.float64)
    across = np.eye(3) - ahead[:, :, None] * ahead[:, None, :]
    return np.linalg.lstsq(across.sum(axis=0), np.einsum("vij,vj->i", across, centers), rcond=1e-6)[0]


def stand_around(viewmats: Float[np.ndarray, "V 4 4"], subject: Float[np.ndarray, "3"]) -> bool:
    """Returns whether most cameras look at a point and, seen from above, stand on all sides of it."""
    offsets = locate_cameras(viewmats) - subject
    aim = np.einsum("vi,vi->v", viewmats[:, 2, :3], -_unit(offsets))
    level = _unit(_level(offsets, _vertical(viewmats)))
    return bool(np.median(aim) > AIM and np.linalg.norm(level.mean(axis=0)) < AROUND)


def orbit(
    viewmats: Float[np.ndarray, "V 4 4"],
    *,
    subject: Float[np.ndarray, "3"],
    down: Float[np.ndarray, "3"],
    num_frames: int,
    arc: float = 2.0 * np.pi,
) -> Float[np.ndarray, "F 4 4"]:
    """Returns a circle of cameras that look at a point, at the median distance and height of the training cameras.

    Args:
      viewmats: cam_from_world of the training cameras, OpenCV axes.
      subject: the point, world frame, scene units.
      down: the axis of the circle, a unit vector, world frame.
      num_frames: cameras on the circle.
      arc: rad; less than a full turn swings to and fro, centred at the training cameras.
    Returns:
      cam_from_world of each frame.
    """
    offsets = locate_cameras(viewmats) - subject
    level = _level(offsets, down)
    radius, depth = np.median(np.linalg.norm(level, axis=-1)), np.median(offsets @ down)
    phases = 2.0 * np.pi * np.arange(num_frames)[:, None] / num_frames
    if arc < 2.0 * np.pi:
        first, angles = _unit(level.mean(axis=0)), arc / 2.0 * np.sin(phases)
    else:
        first, angles = _unit(level[np.argmax(np.linalg.norm(level, axis=-1))]), phases
    second = np.cross(down, first)
    centers = subject + depth * down + radius * (np.cos(angles) * first + np.sin(angles) * second)
    return np.stack([look_at(center, subject, down) for center in centers]).astype(np.float32)


def orbit_subject(
    viewmats: Float[np.ndarray, "V 4 4"],
    points: Float[np.ndarray, "P 3"],
    *,
    down: Float[np.ndarray, "3"],
    num_frames: int,
) -> Float[np.ndarray, "F 4 4"]:
    """Returns a full circle around the subject, or a swing as far as photographs go where they do not surround it."""
    subject = meeting_point(viewmats)
    if stand_around(viewmats, subject):
        return orbit(viewmats, subject=subject, down=down, num_frames=num_frames)
    subject = focus_point(viewmats, points)
    arc = photographed_arc(viewmats, subject=subject, down=down)
    return orbit(viewmats, subject=subject, down=down, num_frames=num_frames, arc=min(arc, 6.0))


def photographed_arc(
    viewmats: Float[np.ndarray, "V 4 4"], *, subject: Float[np.ndarray, "3"], down: Float[np.ndarray, "3"]
) -> float:
    """Returns the angle, seen from above, within which 90 % of the cameras stand around a point, rad."""
    level = _unit(_level(locate_cameras(viewmats) - subject, down))
    first = _unit(level.mean(axis=0))
    angles = np.arctan2(level @ np.cross(down, first), level @ first)
    return float(2.0 * np.percentile(np.abs(angles), 90))


def spiral(
    viewmats: Float[np.ndarray, "V 4 4"], *, focus: Float[np.ndarray, "3"], num_frames: int
) -> Float[np.ndarray, "F 4 4"]:
    """Returns a closed path around the mean training camera, looking at one point (after Mildenhall et al. 2019).

    Args:
      viewmats: cam_from_world of the training cameras, OpenCV axes.
      focus: the point, world frame, scene units.
      num_frames: cameras on the path.
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


def interpolate(viewmats: Float[np.ndarray, "V 4 4"], *, num_frames: int) -> Float[np.ndarray, "F 4 4"]:
    """Returns a smooth path through all cameras, in their order, at about constant speed.

    Positions follow a cubic spline, rotations a spline with continuous angular velocity. Time between two cameras is
    the square root of their distance (centripetal), which keeps the curve near the cameras where distances vary.
    """
    from scipy.interpolate import CubicSpline
    from scipy.spatial.transform import Rotation, RotationSpline

    if len(viewmats) == 1:
        return np.repeat(viewmats, num_frames, axis=0)
    rotations, centers = Rotation.from_matrix(viewmats[:, :3, :3]), locate_cameras(viewmats).astype(np.float64)
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=-1)
    size = max(float(np.median(steps)), 1e-9)
    turns = (rotations[1:] * rotations[:-1].inv()).magnitude()
    times = np.concatenate([[0.0], np.cumsum(np.sqrt(steps / size) + turns + 1e-3)])
    moments = np.linspace(0.0, times[-1], num_frames)
    path = np.tile(np.eye(4), (num_frames, 1, 1))
    # cam_from_world turns smoothly too, and its translation follows from the position.
    path[:, :3, :3] = RotationSpline(times, rotations)(moments).as_matrix()
    path[:, :3, 3] = -np.einsum("fij,fj->fi", path[:, :3, :3], CubicSpline(times, centers, bc_type="natural")(moments))
    return path.astype(np.float32)


def focus_point(viewmats: Float[np.ndarray, "V 4 4"], points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "3"]:
    """Returns the point on the mean viewing axis at the median depth of the points in front of the cameras."""
    centers = locate_cameras(viewmats)
    middle, ahead = centers.mean(axis=0), _mean_direction(viewmats[:, 2, :3])
    distances = (points - middle) @ ahead
    distances = distances[distances > 0]
    return (middle + ahead * (np.median(distances) if distances.size else 1.0)).astype(np.float32)


def _unit(vectors: Float[np.ndarray, "*S 3"]) -> Float[np.ndarray, "*S 3"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _mean_direction(directions: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "3"]:
    """Returns the normalised mean of unit vectors, or the first one if they cancel."""
    mean = directions.mean(axis=0)
    return _unit(mean) if np.linalg.norm(mean) > 1e-3 else directions[0]


def _down(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "3"]:
    """Returns the mean image-down direction of the cameras, world frame."""
    return _mean_direction(viewmats[:, 1, :3])


def _vertical(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "3"]:
    """Returns the down direction as the normal of all image-right directions: photographers hold cameras level."""
    right = viewmats[:, 0, :3].astype(np.float64)
    axis = np.linalg.eigh(right.T @ right)[1][:, 0]
    return axis if axis @ _down(viewmats) > 0 else -axis


def _level(offsets: Float[np.ndarray, "V 3"], down: Float[np.ndarray, "3"]) -> Float[np.ndarray, "V 3"]:
    """Returns the horizontal part of each offset."""
    return offsets - (offsets @ down)[:, None] * down
