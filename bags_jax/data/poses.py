"""Camera poses: cam_from_world matrices, OpenCV axes (numpy)."""

import math

import numpy as np
from jaxtyping import Float

ROUNDING = 1e-5  # of a coordinate: what files with few digits leave of it


def camera_centers(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "V 3"]:
    """Where the cameras stand, world frame."""
    return -np.einsum("vji,vj->vi", viewmats[:, :3, :3], viewmats[:, :3, 3])


def look_at(center: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], roll: float) -> Float[np.ndarray, "4 4"]:
    """cam_from_world of a camera at `center` that looks at `target` (world frame); roll in rad."""
    forward = (target - center) / np.linalg.norm(target - center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    turn = rotation(np.array([0.0, 0.0, roll])) @ np.stack([right, np.cross(forward, right), forward])
    return rigid(turn, -turn @ center)


def rigid(turn: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """The matrix that turns, then shifts."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, shift
    return matrix


def rotation(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of an axis-angle vector, rad (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
