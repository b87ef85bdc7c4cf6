"""The first camera of a viewer: level, in front of the subject; and the frame of exported files that follows from it.

A file's axes are those of the start camera, held level: x right, y down, z forward (OpenCV, as viewers expect of PLY
files from photographs), or x right, y up, z backward (glTF).
"""

import dataclasses
import json
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from bags_jax.camera_path import focus_point, meeting_point, stand_around
from bags_jax.data.poses import locate_cameras, look_at, make_rotation

CENTRAL = 0.25  # tangent of the angle to the view axis within which the subject is looked for
DEFAULT_FOV = 50.0  # degrees, where the intrinsics are not known
FLIP_GLTF = np.diag([1.0, -1.0, -1.0])  # glTF axes from OpenCV axes
FLIP_PLAYCANVAS = np.diag([-1.0, -1.0, 1.0])  # axes of SuperSplat's viewer from those of a PLY: half a turn about z
SWAY_DEG, SWAY_SECONDS, SWAY_KEYS = (
    7.0,
    12.0,
    12,
)  # of the viewer until it is touched: it stays where photographs were taken


@dataclasses.dataclass(frozen=True)
class StartCamera:
    """A level camera; world frame, scene units."""

    position: Float[np.ndarray, "3"]
    target: Float[np.ndarray, "3"]  # the subject: viewers turn around it
    up: Float[np.ndarray, "3"]  # unit vector
    fov_deg: tuple[float, float]  # horizontal and vertical

    def viewmat(self) -> Float[np.ndarray, "4 4"]:
        """Returns cam_from_world, OpenCV axes."""
        return look_at(self.position, self.target, -self.up)

    def level_axes(self) -> Float[np.ndarray, "3 3"]:
        """Returns the rotation from the world frame to the axes right, down, forward of the camera, held level."""
        right = self.viewmat()[0, :3]
        return np.stack([right, -self.up, np.cross(right, -self.up)])

    def rotate(self, rotation: Float[np.ndarray, "3 3"]) -> "StartCamera":
        """Returns the camera in another frame."""
        position, target, up = (rotation @ vector for vector in (self.position, self.target, self.up))
        return StartCamera(position, target, up, self.fov_deg)


def choose_start(
    viewmats: Float[np.ndarray, "V 4 4"],
    Ks: Float[np.ndarray, "V 3 3"] | None,
    points: Float[np.ndarray, "P 3"],
    *,
    up: Float[np.ndarray, "3"],
) -> StartCamera:
    """Chooses the most usual photograph: median distance and height, aimed at the subject; without its roll.

    Args:
      viewmats: cam_from_world of the photographs, OpenCV axes.
      Ks: their intrinsics, px; None: not known.
      points: points of the scene, world frame.
      up: unit vector, world frame.
    """
    centers, ahead = locate_cameras(viewmats).astype(np.float64), viewmats[:, 2, :3].astype(np.float64)
    subject = meeting_point(viewmats).astype(np.float64)
    surrounded = stand_around(viewmats, subject)
    if not surrounded:
        subject = focus_point(viewmats, points).astype(np.float64)
    offsets = subject - centers
    distances, heights = np.linalg.norm(offsets, axis=-1), offsets @ up
    size = max(float(np.median(distances)), 1e-9)
    cost = np.square((distances - size) / size) + np.square((heights - np.median(heights)) / size)
    cost += np.square(np.arccos(np.clip(np.einsum("vi,vi->v", ahead, offsets) / np.maximum(distances, 1e-9), -1, 1)))
    if not surrounded:
        cost += np.sum(np.square(centers - np.median(centers, axis=0)), axis=-1) / size**2
    best = int(np.argmin(cost))
    depth = _seen_depth(viewmats[best], points, nearest=float(offsets[best] @ ahead[best]), otherwise=size)
    target = centers[best] + ahead[best] * depth
    fov = (DEFAULT_FOV * 4 / 3, DEFAULT_FOV)
    if Ks is not None:
        fx, fy, cx, cy = (float(Ks[best][i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
        fov = (2 * math.degrees(math.atan(cx / fx)), 2 * math.degrees(math.atan(cy / fy)))
    return StartCamera(centers[best], target, up, fov)


def _seen_depth(
    viewmat: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "P 3"], *, nearest: float, otherwise: float
) -> float:
    """Returns the depth nearest to a given one at which a camera sees most points in the middle of its picture."""
    x, y, z = viewmat[:3, :3] @ points.T + viewmat[:3, 3:]
    depths = z[(z > 0) & (np.hypot(x, y) < CENTRAL * z)]
    if not depths.size:
        return nearest if nearest > 0 else otherwise
    return float(np.clip(nearest, *np.percentile(depths, (25, 75))))


def viewer_settings(camera: StartCamera, *, background: tuple[float, float, float], is_gltf: bool = False) -> str:
    """Returns the settings of SuperSplat's viewer as JSON.

    Args:
      camera: in the frame of the file.
      background: sRGB in [0, 1].
      is_gltf: the file is glTF, which the viewer does not turn.
    """
    seen = camera if is_gltf else camera.rotate(FLIP_PLAYCANVAS)
    # The viewer's field of view is that of the longer side of the window.
    pose = {"position": seen.position.tolist(), "target": seen.target.tolist(), "fov": round(max(camera.fov_deg), 4)}
    off = {"enabled": False}
    effects = {
        "sharpness": off | {"amount": 0},
        "bloom": off | {"intensity": 1, "blurLevel": 2},
        "grading": off | {"brightness": 0, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
        "vignette": off | {"intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1},
        "fringing": off | {"intensity": 0.5},
    }
    settings = {
        "version": 2,
        "tonemapping": "none",
        "highPrecisionRendering": False,
        "background": {"color": list(background)},
        "postEffectSettings": effects,
        "animTracks": [_sway(seen)],
        "cameras": [{"initial": pose}],
        "annotations": [],
        "startMode": "animTrack",
    }
    return json.dumps(settings, indent=1) + "\n"


def _sway(camera: StartCamera) -> dict[str, Any]:
    """A slow motion to both sides of a camera, as an animation track of the viewer.

    Without a track the viewer turns all around the target, and shows what no photograph has seen.
    """
    offset, poses = camera.position - camera.target, []
    for share in np.arange(SWAY_KEYS) / SWAY_KEYS:
        turn = make_rotation(camera.up * math.radians(SWAY_DEG) * math.sin(2 * math.pi * share))
        poses.append(camera.target + turn @ offset)
    return {
        "name": "sway",
        "duration": SWAY_SECONDS,
        "frameRate": 1,
        "loopMode": "repeat",
        "interpolation": "spline",
        "smoothness": 1,
        "keyframes": {
            "times": (SWAY_SECONDS * np.arange(SWAY_KEYS) / SWAY_KEYS).tolist(),
            "values": {
                "position": np.concatenate(poses).tolist(),
                "target": np.tile(camera.target, SWAY_KEYS).tolist(),
                "fov": [round(max(camera.fov_deg), 4)] * SWAY_KEYS,
            },
        },
    }
