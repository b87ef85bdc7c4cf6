"""Photographs of a world: sharp, shaken by hand, or through a lens: averages in linear light over real camera poses."""

import math

import numpy as np
from jaxtyping import Float, UInt8

from bags_jax.data.poses import make_rigid, make_rotation
from bags_jax.synthetic import raycast

_LATTICE = 13, 8  # rays a pixel of a sharp image, and their Fibonacci lattice: no two share a row or a column
# How an unsteady hand moves a camera: translation (scene units), rotation (rad), relative to each other.
SHAKE_SHARES = np.array([1.0, 1.0, 0.5, 0.25, 0.25, 0.35])


def to_srgb(linear: Float[np.ndarray, "*axes"]) -> UInt8[np.ndarray, "*axes"]:
    """Linear light in [0, 1] to 8-bit sRGB."""
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-8) ** (1 / 2.4) - 0.055)
    return np.round(255 * np.clip(encoded, 0.0, 1.0)).astype(np.uint8)


def _shifted(K: np.ndarray, x: float, y: float) -> np.ndarray:
    """The camera whose pixel centres see what lies (x, y) px beside the old ones."""
    moved = K.copy()
    moved[:2, 2] -= (x, y)
    return moved


def _spread(num: int) -> Float[np.ndarray, "num 2"]:
    """Points of the R2 low-discrepancy sequence (Roberts 2018), over the unit square about 0.

    Their mean is taken off: the first 16 lean by 0.09 px, and all photographs would be shifted against their truth.
    """
    points = (0.5 + np.arange(num)[:, None] * np.array([0.7548776662, 0.5698402910])) % 1.0
    return points - points.mean(axis=0)


def _lens_points(num: int) -> Float[np.ndarray, "num 2"]:
    """Points of a disc of radius 1 about 0: Vogel's sunflower, even over the disc, its mean taken off."""
    index = np.arange(num)
    radius, angle = np.sqrt((index + 0.5) / num), index * math.pi * (3 - math.sqrt(5))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return points - points.mean(axis=0)


def render_sharp(
    world: raycast.World, viewmat: np.ndarray, K: np.ndarray, *, height: int, width: int
) -> Float[np.ndarray, "height width 3"]:
    """Pinhole image in linear light, averaged over each pixel's square."""
    num, stride = _LATTICE
    total = np.zeros((height, width, 3), np.float32)
    for i in range(num):
        x, y = (i + 0.5) / num - 0.5, (i * stride % num + 0.5) / num - 0.5
        total += raycast.render_frame(world, viewmat, _shifted(K, x, y), height=height, width=width)[0]
    return total / num


def path_lengths(num: int) -> Float[np.ndarray, "num"]:
    """Hard blur: mean path lengths of the views, px at width 128: 1 in 8 nearly sharp, most of the others 2.5 to 6."""
    num_sharp = round(num / 8)
    places = (np.arange(num - num_sharp) + 0.5) / (num - num_sharp)
    shaken = np.interp(places, [0.0, 0.15, 0.9, 1.0], [0.5, 2.5, 6.0, 6.6])
    return np.concatenate([np.linspace(0.1, 0.3, num_sharp), shaken])


def draw_shake(key: np.random.Generator) -> Float[np.ndarray, "3 6"]:
    """Coefficients of t, t^2, t^3 for translation (scene units) and rotation (rad): a curved path, 0 at t = 0."""
    first = key.normal(size=6) * SHAKE_SHARES
    bend = key.normal(size=(2, 6)) * SHAKE_SHARES
    return np.stack([first, 0.8 * bend[0], 2.0 * bend[1]])


def pose_at(viewmat: np.ndarray, shake: np.ndarray, t: float) -> np.ndarray:
    """cam_from_world at time t in [-0.5, 0.5] of the exposure."""
    moved = np.array([t, t * t, t**3]) @ shake
    return make_rigid(make_rotation(moved[3:]), moved[:3]) @ viewmat


def seen_points(
    world: raycast.World, viewmat: np.ndarray, K: np.ndarray, *, height: int, width: int
) -> Float[np.ndarray, "4 n"]:
    """What every 6th pixel sees, homogeneous world points."""
    rows, columns = np.mgrid[0.5:height:6, 0.5:width:6].reshape(2, -1)
    origin, directions = raycast.camera_rays(viewmat, K, np.stack([columns, rows]))
    points = origin + raycast.cast(world, origin, directions)[0] * directions
    return np.concatenate([points, np.ones_like(points[:1])])


def displacement(points: np.ndarray, viewmat: np.ndarray, other: np.ndarray, K: np.ndarray) -> float:
    """Root mean square, px, of what world points [4, n] move on the screen from one pose to another."""
    screens = [K @ (pose @ points)[:3] for pose in (viewmat, other)]
    move = np.subtract(*[screen[:2] / screen[2] for screen in screens])
    return float(np.sqrt(np.square(move).sum(0).mean()))


def path_length(points: np.ndarray, viewmat: np.ndarray, K: np.ndarray, shake: np.ndarray) -> float:
    """Mean length, px, of the screen paths of world points [4, n] during the exposure."""
    screens = [K @ (pose_at(viewmat, shake, t) @ points)[:3] for t in np.linspace(-0.5, 0.5, 17)]
    places = np.stack([screen[:2] / screen[2] for screen in screens])
    return float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum(0).mean())


def render_shaken(
    world: raycast.World,
    viewmat: np.ndarray,
    K: np.ndarray,
    length: float,
    key: np.random.Generator,
    *,
    height: int,
    width: int,
) -> Float[np.ndarray, "height width 3"]:
    """Average in linear light along a random camera path whose mean screen length is `length` px."""
    points = seen_points(world, viewmat, K, height=height, width=width)
    shake = 0.02 * draw_shake(key)
    for _ in range(2):  # nearly linear in the coefficients
        shake = shake * length / path_length(points, viewmat, K, shake)
    num = max(16, math.ceil(1.25 * length))
    total = np.zeros((height, width, 3), np.float32)
    for i, (x, y) in enumerate(_spread(num)):
        pose = pose_at(viewmat, shake, (i + 0.5) / num - 0.5)
        total += raycast.render_frame(world, pose, _shifted(K, x, y), height=height, width=width)[0]
    return total / num


def render_defocused(
    world: raycast.World,
    viewmat: np.ndarray,
    K: np.ndarray,
    depth: float,
    aperture: float,
    *,
    height: int,
    width: int,
) -> Float[np.ndarray, "height width 3"]:
    """Average in linear light over a thin lens of diameter `aperture` focused at camera z = depth (scene units)."""
    num = min(160, max(32, round(32 * (width / 128) ** 2)))
    focal = float(K[0, 0])
    total = np.zeros((height, width, 3), np.float32)
    for (u, v), (x, y) in zip(aperture / 2 * _lens_points(num), _spread(num), strict=True):
        pose = make_rigid(np.eye(3), np.array([-u, -v, 0.0])) @ viewmat
        # The lens point sees the plane of focus where the lens centre does.
        lens_K = _shifted(K, x - focal * u / depth, y - focal * v / depth)
        total += raycast.render_frame(world, pose, lens_K, height=height, width=width)[0]
    return total / num
