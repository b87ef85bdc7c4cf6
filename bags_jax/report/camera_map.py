"""The cameras seen from above, as coordinates for the SVG of the page."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MOST_DOTS = 800  # points of the scene on the map
SPREAD = 2.2  # points farther than this from the middle of the cameras, in their largest distance from it, are left out
LOOK_PX = 15  # length of the line that shows where a camera looks
RADII_PX = (3.5, 12.0)  # of cameras without blur, and with the largest blur
MARGIN_PX = 26
LEVEL = 0.05  # weight of the mean down direction where the image-right directions leave the vertical open
FORWARD = 0.5  # cameras look one way if the mean of their directions is longer


@dataclasses.dataclass(frozen=True)
class MapView:
    """A view as the map gets it."""

    name: str
    viewmat: Float[np.ndarray, "4 4"]  # cam_from_world, OpenCV axes
    blur_px: float | None  # None: unknown
    link: str  # address on the page
    held_out: bool = False


@dataclasses.dataclass(frozen=True)
class CameraDot:
    """A camera on the map, px."""

    label: str
    link: str
    x: float
    y: float
    look_x: float
    look_y: float
    radius: float
    held_out: bool


@dataclasses.dataclass(frozen=True)
class CameraMap:
    """The cameras from above, as an SVG of width x height px."""

    width: int
    height: int
    path: str  # through the training cameras in the order that they came in
    cameras: tuple[CameraDot, ...]
    dots: tuple[tuple[float, float], ...]  # points of the scene


def draw_map(views: Sequence[MapView], points: Float[np.ndarray, "P 3"], *, width: int) -> CameraMap:
    """Lays out the cameras of a capture and its points, seen from above.

    Args:
      views: at least one.
      points: of the scene, world frame.
      width: of the map, px.
    """
    viewmats = np.stack([view.viewmat for view in views]).astype(np.float64)
    centers = -np.einsum("vji,vj->vi", viewmats[:, :3, :3], viewmats[:, :3, 3])
    axes, middle = choose_axes(viewmats, centers), centers.mean(axis=0)
    reach = max(float(np.linalg.norm(centers - middle, axis=1).max()), 1e-9)
    near = points[np.linalg.norm(points - middle, axis=1) < SPREAD * reach] if len(points) else np.zeros((0, 3))
    near = near[:: max(1, -(-len(near) // MOST_DOTS))]
    flat = np.concatenate([centers, near]) - middle
    flat, looks = flat @ axes.T, viewmats[:, 2, :3] @ axes.T
    low, high = flat.min(axis=0), flat.max(axis=0)
    span = np.maximum(high - low, 1e-3 * reach)
    scale = min((width - 2 * MARGIN_PX) / span[0], (0.75 * width - 2 * MARGIN_PX) / span[1])
    height = round(scale * span[1]) + 2 * MARGIN_PX
    left = (width - scale * span[0]) / 2
    places = np.stack([left + scale * (flat[:, 0] - low[0]), MARGIN_PX + scale * (high[1] - flat[:, 1])], axis=1)
    worst = max([view.blur_px or 0.0 for view in views]) or 1.0
    cameras = [_make_dot(view, place, look, worst) for view, place, look in zip(views, places, looks)]
    line = [f"{x:.1f},{y:.1f}" for view, (x, y) in zip(views, places) if not view.held_out]
    return CameraMap(
        width=width,
        height=height,
        path="M" + " L".join(line) if line else "",
        cameras=tuple(sorted(cameras, key=lambda dot: -dot.radius)),  # small ones on top
        dots=tuple((round(float(x), 1), round(float(y), 1)) for x, y in places[len(views) :]),
    )


def choose_axes(viewmats: Float[np.ndarray, "V 4 4"], centers: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "2 3"]:
    """Directions to the right and to the top of the map, world frame: cameras that look one way look to the top.

    Vertical is the direction most nearly across all image-right directions: photographers hold cameras level.
    """
    right, down, ahead = viewmats[:, 0, :3], viewmats[:, 1, :3].mean(axis=0), viewmats[:, 2, :3].mean(axis=0)
    up = np.linalg.eigh(right.T @ right / len(right) - LEVEL * np.outer(down, down))[1][:, 0]
    up = -up if up @ down > 0 else up
    level = ahead - (ahead @ up) * up
    if np.linalg.norm(level) > FORWARD:
        top = level / np.linalg.norm(level)
        return np.stack([np.cross(top, up), top])
    offsets = centers - centers.mean(axis=0)
    offsets = offsets - (offsets @ up)[:, None] * up
    widest = np.linalg.eigh(offsets.T @ offsets)[1][:, -1]
    widest = widest - (widest @ up) * up
    if np.linalg.norm(widest) < 0.5:  # all cameras at one place
        widest = np.cross(up, np.eye(3)[np.argmin(np.abs(up))])
    widest = widest / np.linalg.norm(widest)
    return np.stack([widest, np.cross(up, widest)])


def _make_dot(view: MapView, place: np.ndarray, look: np.ndarray, worst: float) -> CameraDot:
    smallest, largest = RADII_PX
    share = (view.blur_px or 0.0) / worst
    kind = "held out" if view.held_out else "" if view.blur_px is None else f"blur {view.blur_px:.2f} px"
    return CameraDot(
        label=f"{view.name}: {kind}" if kind else view.name,
        link=view.link,
        x=round(float(place[0]), 1),
        y=round(float(place[1]), 1),
        look_x=round(float(place[0] + LOOK_PX * look[0]), 1),
        look_y=round(float(place[1] - LOOK_PX * look[1]), 1),
        radius=round(smallest + (largest - smallest) * share, 1),
        held_out=view.held_out,
    )
