"""Finds the up direction of a capture from its camera poses and its points (numpy).

Three cues, in the world frame. Photographers hold cameras level, so up is orthogonal to the image-right axes; the mean
image-up axis gives the sign, and the direction where all cameras face one way. Floors and tables are the planes that
most points lie in. A walk around a subject is a level loop. The last two cues refine the first one where they agree
with it; a wall, or the plane of a forward-facing capture, stands at right angles to up and is thus ignored.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from bags_jax.data.poses import locate_cameras
from bags_jax.errors import UserError

ROLL = math.radians(3.0)  # standard deviation of the roll of a photographer's camera
PITCH = math.radians(20.0)  # how far the mean image-up axis may lean
INDEPENDENT = 20  # photographs whose rolls count as independent of each other
MOST_ROLL = math.radians(30.0)  # views with more roll (portrait among landscape) are left out
AGREES = math.radians(3.0)  # another cue refines the cameras' direction within this angle, or within 2 deviations
FARTHEST = math.radians(30.0)  # but never by more
FLAT = 0.02  # the cameras' positions form a loop if their least variance is below this share of the middle one
ROUND = 0.15  # and the middle one above this share of the largest
MIN_POINTS = 100
MAX_POINTS = 4000
# Search from coarse to fine: share of the cone's angle, rings of directions, thickness of the slabs of points (as a share
# of the points' spread).
SEARCH = ((1.0, 12, 0.04), (1 / 8, 6, 0.02), (1 / 40, 4, 0.01))
PEAK = 1.2  # a plane is found if slabs across it are this much more uneven than in the median direction


@dataclasses.dataclass(frozen=True)
class Upright:
    """The up direction of a scene."""

    direction: Float[np.ndarray, "3"]  # unit vector, world frame
    uncertainty_deg: float  # rough standard deviation of the direction; 0: given by the user
    note: str  # how the direction was found, in words


def find_up(viewmats: Float[np.ndarray, "V 4 4"], points: Float[np.ndarray, "P 3"]) -> Upright:
    """Estimates the up direction of a capture.

    Args:
      viewmats: cam_from_world of at least one photograph, OpenCV axes.
      points: points of the scene, world frame, scene units; may be empty.
    Returns:
      The direction, its uncertainty, and a sentence that says how it was found.
    """
    direction, deviation, note = _up_of_cameras(viewmats)
    limit = min(max(AGREES, 2 * deviation), FARTHEST)
    normal = _normal_of_planes(points, near=direction, within=limit)
    if normal is not None:
        note = f"{note}, refined by {_degrees(_angle(normal, direction))} to the planes of the points"
        return Upright(normal, math.degrees(min(deviation, ROLL) / 2), note)
    normal = _normal_of_loop(viewmats)
    if normal is not None:
        normal = normal if normal @ direction > 0 else -normal
        if _angle(normal, direction) < limit:
            note = f"{note}, refined by {_degrees(_angle(normal, direction))} to the plane of the cameras' loop"
            return Upright(normal, math.degrees(min(deviation, ROLL)), note)
    return Upright(direction, math.degrees(deviation), note)


def read_up(text: str) -> Upright:
    """Reads the up direction that a user gave.

    Args:
      text: three numbers with commas, of any length but 0, world frame; or an axis such as z or -y.
    Raises:
      UserError: the text is neither.
    """
    axes = {sign + name: s * np.eye(3)[i] for i, name in enumerate("xyz") for sign, s in (("", 1), ("+", 1), ("-", -1))}
    vector = axes.get(text.strip().lower())
    if vector is None:
        try:
            vector = np.array([float(part) for part in text.split(",")])
        except ValueError:
            vector = np.zeros(0)
    length = float(np.linalg.norm(vector))
    if vector.shape != (3,) or not 0 < length < math.inf:
        raise UserError(f"--up={text} came, expected an axis such as z or -y, or three numbers: --up=0,0,1")
    return Upright(vector / length, 0.0, "given by --up")


def rotation_to(source: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Returns the smallest rotation that moves one unit vector onto another."""
    axis, cosine = np.cross(source, target), float(source @ target)
    if cosine < -1 + 1e-9:  # half a turn about any axis across
        across = np.cross(source, np.eye(3)[np.argmin(np.abs(source))])
        across /= np.linalg.norm(across)
        return 2 * np.outer(across, across) - np.eye(3)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def _up_of_cameras(viewmats: Float[np.ndarray, "V 4 4"]) -> tuple[Float[np.ndarray, "3"], float, str]:
    """Returns the direction that is most orthogonal to the image-right axes and near the mean image-up axis.

    Minimises sum (r . u)^2 / ROLL^2 + angle(u, mean up)^2 / PITCH^2: the least eigenvector of a 3 x 3 matrix. The
    second eigenvalue is the precision of the weakest direction.

    Returns:
      (unit vector, standard deviation in rad, how it was found).
    """
    right, up = viewmats[:, 0, :3].astype(np.float64), -viewmats[:, 1, :3].astype(np.float64)
    used = np.ones(len(right), bool)
    direction, deviation, spread = np.zeros(3), 0.0, 0.0
    for _ in range(4):
        mean_up = _mean_unit(up[used])
        level = right[used].T @ right[used] / used.sum()
        weight = min(used.sum(), INDEPENDENT) / ROLL**2
        values, vectors = np.linalg.eigh(weight * level + (np.eye(3) - np.outer(mean_up, mean_up)) / PITCH**2)
        direction = vectors[:, 0] * (1.0 if vectors[:, 0] @ mean_up >= 0 else -1.0)
        rolls = np.arcsin(np.clip(np.abs(right @ direction), 0, 1))
        deviation = float(np.sqrt(1 / values[1]) * max(1.0, np.sqrt(np.mean(rolls[used] ** 2)) / ROLL))
        spread = float(np.linalg.eigvalsh(level)[1])
        kept = (rolls < MOST_ROLL) & (up @ direction > 0)
        if kept.sum() < max(1, len(kept) // 2) or np.array_equal(kept, used):
            break
        used = kept
    turned = math.degrees(math.asin(min(1.0, math.sqrt(max(spread, 0.0)))))
    how = "orthogonal to the cameras' right axes" if turned > 5.0 else "the mean image-up axis of the cameras"
    return direction, deviation, how


def _mean_unit(directions: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "3"]:
    """Returns the normalised mean of unit vectors, or the first one if they cancel."""
    mean = directions.mean(axis=0)
    length = np.linalg.norm(mean)
    return mean / length if length > 1e-3 else directions[0]


def _normal_of_loop(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "3"] | None:
    """Returns the normal of the plane of the camera centres; None: they form no flat loop."""
    if len(viewmats) < 6:
        return None
    centers = locate_cameras(viewmats).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(centers.T))
    return vectors[:, 0] if values[0] < FLAT * values[1] and values[1] > ROUND * values[2] else None


def _normal_of_planes(
    points: Float[np.ndarray, "P 3"], *, near: Float[np.ndarray, "3"], within: float
) -> Float[np.ndarray, "3"] | None:
    """Returns the direction near another one across which the points lie in the fewest slabs; None: nothing stands out.

    Floor, table and shelves are parallel, so they all count: the score is the sum of the squared shares of the slabs.
    """
    points = points[np.isfinite(points).all(axis=-1)].astype(np.float64)
    if len(points) < MIN_POINTS:
        return None
    points = points[:: -(-len(points) // MAX_POINTS)]
    middle = np.median(points, axis=0)
    distances = np.linalg.norm(points - middle, axis=-1)
    radius = np.percentile(distances, 80)
    if not radius > 0:
        return None
    points = (points - middle)[distances <= 2 * radius] / radius
    best = near
    for share, rings, slab in SEARCH:
        directions = _cone(best, angle=share * within, rings=rings)
        scores = np.array([_unevenness(points @ direction, slab=slab) for direction in directions])
        if share == 1 and scores.max() < PEAK * np.median(scores):
            return None
        best = directions[np.argmax(scores)]
    return best if _angle(best, near) < 0.95 * within else None


def _unevenness(heights: Float[np.ndarray, "P"], *, slab: float) -> float:
    """Returns the sum of the squared shares of points in overlapping slabs."""
    counts = np.histogram(heights, bins=int(8 / slab), range=(-2, 2))[0] / len(heights)
    return float(np.sum((counts[1:] + counts[:-1]) ** 2))


def _cone(axis: Float[np.ndarray, "3"], *, angle: float, rings: int) -> Float[np.ndarray, "D 3"]:
    """Returns directions evenly spread within an angle of an axis, the axis first."""
    first = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    found = [axis]
    for ring in range(1, rings + 1):
        lean, turns = angle * ring / rings, 2 * np.pi * np.arange(6 * ring)[:, None] / (6 * ring)
        found.extend(np.cos(lean) * axis + np.sin(lean) * (np.cos(turns) * first + np.sin(turns) * second))
    return np.stack(found)


def _angle(a: Float[np.ndarray, "3"], b: Float[np.ndarray, "3"]) -> float:
    return math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b))


def _degrees(angle: float) -> str:
    return f"{math.degrees(angle):.1f} degrees"
