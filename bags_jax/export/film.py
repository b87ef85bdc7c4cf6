"""The pictures of a film: sharp renders, depth in colours, or photographs that a line wipes away."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from bags_jax.camera_path import CameraPath
from bags_jax.errors import UserError
from bags_jax.rendering import Rendered
from bags_jax.report.colors import colorize
from bags_jax.report.pictures import to_uint8
from bags_jax.run import Run

MODES = ("sharp", "depth", "compare")
WIPE_SECONDS, HOLD_SECONDS = 1.4, 0.6  # of the line that moves over a photograph, and of the photograph and the render
_LINE_PX = 2
_MIN_ALPHA = 0.05  # less is shown as the far end of the scale
_POINTS = 4000  # that the range of depths is worked out from


def check_mode(mode: str, cameras: CameraPath) -> None:
    """Raises UserError if a film needs photographs and its cameras are not those of photographs."""
    if mode == "compare" and cameras.ids is None:
        raise UserError("--mode=compare wipes photographs over their renders, expected --path=train or --path=test")


def depth_range(run: Run, cameras: CameraPath) -> tuple[float, float]:
    """Nearest and farthest depth of the scene along a path, scene units: percentiles of the Gaussians in view."""
    means = np.asarray(run.state.gaussians.means)[np.asarray(run.state.alive)]
    means = means[:: -(-len(means) // _POINTS)]
    found = []
    for viewmat, K, (height, width) in zip(cameras.viewmats, cameras.Ks, cameras.sizes, strict=True):
        x, y, z = (viewmat[:3, :3] @ means.T + viewmat[:3, 3:]).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
        found.append(z[(z > run.job.near_plane) & (u > 0) & (u < width) & (v > 0) & (v < height)])
    depths = np.concatenate(found)
    return tuple(np.percentile(depths, (2, 98))) if depths.size else (1.0, 2.0)


def draw_depth(rendered: Rendered, limits: tuple[float, float]) -> UInt8[np.ndarray, "H W 3"]:
    """Colours the depth of a render: pale is near, dark is far; even steps of 1 / depth."""
    near, far = (1 / max(limit, 1e-9) for limit in limits)
    alpha = np.asarray(rendered.alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        disparity = np.where(alpha > _MIN_ALPHA, alpha / np.asarray(rendered.depth), far)
    return colorize((np.nan_to_num(disparity, nan=far, posinf=near) - far) / max(near - far, 1e-12))


def wipe(
    before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "H W 3"], share: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Shows `after` left of a white line at a share of the width, `before` right of it."""
    width = before.shape[1]
    place = round(share * width)
    picture = np.concatenate([after[:, :place], before[:, place:]], axis=1)
    if 0 < place < width:
        picture[:, max(place - _LINE_PX // 2, 0) : place + _LINE_PX // 2] = 255
    return picture


def wipe_frames(
    before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "H W 3"], *, fps: float
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields the frames that hold a photograph, wipe it away, and hold the render."""
    hold, moving = round(HOLD_SECONDS * fps / 2), max(2, round(WIPE_SECONDS * fps))
    shares = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, moving))
    for share in (*[0.0] * hold, *shares, *[1.0] * hold):
        yield wipe(before, after, float(share))


def photograph(run: Run, view: int) -> UInt8[np.ndarray, "H W 3"]:
    """The photograph of a view of the scene."""
    return to_uint8(run.scene.images[view])
