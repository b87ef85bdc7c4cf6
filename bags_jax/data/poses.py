"""Camera poses: cam_from_world matrices, OpenCV axes (numpy)."""

import math

import numpy as np
from jaxtyping import Float

ROUNDING = 1e-5  # relative rounding error of a coordinate in files with few digits


def locate_cameras(viewmats: Float[np.ndarray, "V 4 4"]) -> Float[np.ndarray, "V 3"]:
    """Returns the camera centres, world frame."""
    return -np.einsum("vji,vj->vi", viewmats[:, :3, :3], viewmats[:, :3, 3])


def look_at(
    center: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], down: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """Returns cam_from_world of a camera at `center` with `target` in the middle of its image and `down` pointing down.

    All in the world frame. If the camera looks along `down`, its roll is arbitrary.
    """
    ahead = (target - center) / np.linalg.norm(target - center)
    right = np.cross(down, ahead)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(np.eye(3)[np.argmin(np.abs(ahead))], ahead)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    return make_rigid(rotation, -rotation @ center)


def make_rigid(rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """Returns the matrix that rotates, then translates."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def find_middle(viewmats: Float[np.ndarray, "S 4 4"]) -> Float[np.ndarray, "4 4"]:
    """Returns the pose in the middle of S poses at equal steps of time: of an even number, halfway between the middle two.

    Halfway is half the rotation from one to the other, and the middle of the camera centres.
    """
    last = len(viewmats) // 2
    pair = viewmats[(len(viewmats) - 1) // 2], viewmats[last]
    if pair[0] is pair[1] or len(viewmats) % 2:
        return viewmats[last]
    u, _, vt = np.linalg.svd(pair[0][:3, :3] + pair[1][:3, :3])  # the nearest rotation to both
    rotation = u @ vt
    return make_rigid(rotation, -rotation @ locate_cameras(np.stack(pair)).mean(axis=0))


def make_rotation(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation matrix of an axis-angle vector, rad (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
