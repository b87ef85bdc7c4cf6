"""Camera poses: cam_from_world matrices, OpenCV axes (numpy)."""

import math

import numpy as np
from jaxtyping import Float

ROUNDING = 1e-5  # of a coordinate: what files with few digits leave of it


def camera_centers(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "V 3"]:
    """Where the cameras stand, world frame."""
    return -np.einsum("vji,vj->vi", viewmats[:, :3, :3], viewmats[:, :3, 3])


def look_at(
    center: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], down: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """cam_from_world of a camera at `center` that sees `target` in the middle of its image, `down` pointing down."""
    ahead = (target - center) / np.linalg.norm(target - center)
    right = np.cross(down, ahead)
    if np.linalg.norm(right) < 1e-6:  # it looks straight down or up: any side is the right one
        right = np.cross(np.eye(3)[np.argmin(np.abs(ahead))], ahead)
    right /= np.linalg.norm(right)
    turn = np.stack([right, np.cross(ahead, right), ahead])
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
