"""Cameras of a browser window and cameras of photographs: one into the other.

viser's cameras have OpenCV axes, as ours: +x right, +y down, +z forward; its quaternion is world_from_cam, wxyz.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from bags_jax.data.poses import make_rigid


@dataclasses.dataclass(frozen=True)
class WindowCamera:
    """The camera of one browser window. Its principal point is the centre of the window."""

    wxyz: tuple[float, float, float, float]  # world_from_cam
    position: tuple[float, float, float]  # world frame, scene units
    fov: float  # vertical field of view, rad
    width: int  # of the window, px
    height: int

    @property
    def aspect(self) -> float:
        """Width over height of the window."""
        return self.width / self.height

    @property
    def viewmat(self) -> Float[np.ndarray, "4 4"]:
        """cam_from_world."""
        rotation = matrix_from_wxyz(self.wxyz).T
        return make_rigid(rotation, -rotation @ np.asarray(self.position))

    def is_like(self, other: "WindowCamera") -> bool:
        """True if both show the same, up to the rounding of the browser."""
        if (self.width, self.height) != (other.width, other.height):
            return False
        ours, theirs = (np.array([*c.wxyz, *c.position, c.fov]) for c in (self, other))
        theirs[:4] *= np.sign(ours[:4] @ theirs[:4]) or 1.0  # a quaternion and its negative are one rotation
        return bool(np.allclose(ours, theirs, rtol=1e-5, atol=1e-6))

    def intrinsics(self, width: int, height: int) -> Float[np.ndarray, "3 3"]:
        """Intrinsics of a picture that fills the window, px. Pixels need not be square: sizes of pictures are rounded."""
        slope = math.tan(self.fov / 2)
        fx, fy = width / 2 / (slope * self.aspect), height / 2 / slope
        return np.array([[fx, 0.0, width / 2], [0.0, fy, height / 2], [0.0, 0.0, 1.0]])


@dataclasses.dataclass(frozen=True)
class PhotoCamera:
    """The camera of one photograph."""

    viewmat: Float[np.ndarray, "4 4"]  # cam_from_world
    K: Float[np.ndarray, "3 3"]  # px
    width: int  # px
    height: int

    @property
    def position(self) -> Float[np.ndarray, "3"]:
        """World frame, scene units."""
        return -self.viewmat[:3, :3].T @ self.viewmat[:3, 3]

    @property
    def wxyz(self) -> tuple[float, float, float, float]:
        """world_from_cam."""
        return wxyz_from_matrix(self.viewmat[:3, :3].T)

    @property
    def fov(self) -> float:
        """Vertical field of view, rad, of a camera with the principal point in the middle."""
        return 2 * math.atan(self.height / 2 / self.K[1, 1])

    def fov_of_window(self, aspect: float) -> float:
        """Vertical field of view, rad, of a window of this aspect that shows the whole photograph."""
        (fx, _, cx), (_, fy, cy), _ = self.K
        up, across = max(cy, self.height - cy) / fy, max(cx, self.width - cx) / fx
        return 2 * math.atan(max(up, across / aspect))

    def frame_on(self, camera: WindowCamera, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the photograph in a picture of a window that stands where the photograph was taken, px."""
        K = camera.intrinsics(width, height)
        left, top = (K[i, 2] - self.K[i, 2] * K[i, i] / self.K[i, i] for i in range(2))
        return left, top, left + self.width * K[0, 0] / self.K[0, 0], top + self.height * K[1, 1] / self.K[1, 1]


def matrix_from_wxyz(wxyz: tuple[float, float, float, float]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of a unit quaternion."""
    w, x, y, z = np.asarray(wxyz, np.float64) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def wxyz_from_matrix(rotation: Float[np.ndarray, "3 3"]) -> tuple[float, float, float, float]:
    """Unit quaternion, w >= 0, of a rotation matrix."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat(canonical=True)
    return float(w), float(x), float(y), float(z)


def orbit_up(viewmat: Float[np.ndarray, "4 4"], up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """The axis nearest to `up` (world frame) about which a window may orbit and keep the roll of a camera."""
    right, down, _ = viewmat[:3, :3]
    axis = up - (up @ right) * right
    length = float(np.linalg.norm(axis))
    return axis / length if length > 0.05 and axis @ down < 0 else -down


def focus_distance(viewmat: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "P 3"], *, otherwise: float) -> float:
    """Median depth of the points near the middle of a camera's view, scene units; `otherwise` where there are few."""
    right, down, ahead = ((points @ viewmat[:3, :3].T) + viewmat[:3, 3]).T
    seen = (ahead > 0) & (np.hypot(right, down) < 0.35 * ahead)
    return float(np.median(ahead[seen])) if np.count_nonzero(seen) >= 10 else otherwise
