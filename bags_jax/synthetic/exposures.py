"""Photographs of a world: sharp, with camera shake, or out of focus. All are averages in linear light over poses."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, UInt8

from bags_jax.data.poses import make_rigid, make_rotation
from bags_jax.synthetic import raycast

_LATTICE = (
    13,
    8,
)  # rays per pixel of a sharp image, and the stride of their Fibonacci lattice: no two share a row or a column
# Relative size of the motions of a hand-held camera: 3 of translation (scene units), 3 of rotation (rad).
SHAKE_SHARES = np.array([1.0, 1.0, 0.5, 0.25, 0.25, 0.35])


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How one photograph is exposed: a camera path and a thin lens."""

    shake: Float[np.ndarray, "3 6"]  # the path, as `shake_pose` takes it
    length: float  # of the path on the screen, px; 0: the camera stands still
    focus: float  # camera z of the plane of focus, scene units
    aperture: float  # diameter of the lens, scene units; 0: a pinhole


def encode_srgb(linear: Float[np.ndarray, "*axes"]) -> UInt8[np.ndarray, "*axes"]:
    """Converts linear light in [0, 1] to 8-bit sRGB."""
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-8) ** (1 / 2.4) - 0.055)
    return np.round(255 * np.clip(encoded, 0.0, 1.0)).astype(np.uint8)


def decode_srgb(image: UInt8[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes"]:
    """Converts 8-bit sRGB to linear light in [0, 1]."""
    values = image / 255.0
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _shift_center(K: np.ndarray, x: float, y: float) -> np.ndarray:
    """Returns intrinsics with which each pixel centre samples the point (x, y) px beside it."""
    shifted = K.copy()
    shifted[:2, 2] -= (x, y)
    return shifted


def _spread_samples(num: int) -> Float[np.ndarray, "num 2"]:
    """Returns points of the R2 low-discrepancy sequence (Roberts 2018) in the unit square about 0.

    Their mean is subtracted. That of the first 16 is 0.09 px, which would shift all photographs against their truth.
    """
    points = (0.5 + np.arange(num)[:, None] * np.array([0.7548776662, 0.5698402910])) % 1.0
    return points - points.mean(axis=0)


def _spread_lens_points(num: int) -> Float[np.ndarray, "num 2"]:
    """Returns points of a disc of radius 1 about 0: Vogel's sunflower, uniform over the disc, its mean subtracted."""
    index = np.arange(num)
    radius, angle = np.sqrt((index + 0.5) / num), index * math.pi * (3 - math.sqrt(5))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return points - points.mean(axis=0)


def render_sharp(
    world: raycast.World, viewmat: np.ndarray, K: np.ndarray, *, height: int, width: int
) -> Float[np.ndarray, "height width 3"]:
    """Renders a pinhole image in linear light, averaged over each pixel's square."""
    num, stride = _LATTICE
    total = np.zeros((height, width, 3), np.float32)
    for i in range(num):
        x, y = (i + 0.5) / num - 0.5, (i * stride % num + 0.5) / num - 0.5
        total += raycast.render_frame(world, viewmat, _shift_center(K, x, y), height=height, width=width)[0]
    return total / num


def make_path_lengths(num: int) -> Float[np.ndarray, "num"]:
    """Returns the path lengths of hard blur, px at width 128: 1 view in 8 nearly sharp, most of the others 2.5 to 6."""
    num_sharp = round(num / 8)
    places = (np.arange(num - num_sharp) + 0.5) / (num - num_sharp)
    shaken = np.interp(places, [0.0, 0.15, 0.9, 1.0], [0.5, 2.5, 6.0, 6.6])
    return np.concatenate([np.linspace(0.1, 0.3, num_sharp), shaken])


def make_varied_path_lengths(num: int) -> Float[np.ndarray, "num"]:
    """Returns path lengths from 1.5 to 7.5 px at width 128, evenly spread in their logarithm; 1 view in 12 nearly sharp."""
    num_sharp = round(num / 12)
    spread = np.geomspace(1.5, 7.5, max(num - num_sharp, 1))
    return np.concatenate([np.linspace(0.1, 0.3, num_sharp), spread])[:num]


def draw_shake(key: np.random.Generator) -> Float[np.ndarray, "3 6"]:
    """Draws a curved path, 0 at t = 0: coefficients of t, t^2, t^3 for translation (scene units) and rotation (rad)."""
    linear = key.normal(size=6) * SHAKE_SHARES
    bend = key.normal(size=(2, 6)) * SHAKE_SHARES
    return np.stack([linear, 0.8 * bend[0], 2.0 * bend[1]])


def shake_pose(viewmat: np.ndarray, shake: np.ndarray, t: float) -> np.ndarray:
    """Returns cam_from_world at time t in [-0.5, 0.5] of the exposure."""
    motion = np.array([t, t * t, t**3]) @ shake
    return make_rigid(make_rotation(motion[3:]), motion[:3]) @ viewmat


def find_visible_points(
    world: raycast.World, viewmat: np.ndarray, K: np.ndarray, *, height: int, width: int
) -> Float[np.ndarray, "4 n"]:
    """Returns the surface points at every 6th pixel of every 6th row: homogeneous, world frame."""
    rows, columns = np.mgrid[0.5:height:6, 0.5:width:6].reshape(2, -1)
    origin, directions = raycast.make_camera_rays(viewmat, K, np.stack([columns, rows]))
    points = origin + raycast.cast(world, origin, directions)[0] * directions
    return np.concatenate([points, np.ones_like(points[:1])])


def measure_displacement(points: np.ndarray, viewmat: np.ndarray, other: np.ndarray, K: np.ndarray) -> float:
    """Returns the RMS distance, px, that world points [4, n] move on the screen from one pose to another."""
    screens = [K @ (pose @ points)[:3] for pose in (viewmat, other)]
    offsets = np.subtract(*[screen[:2] / screen[2] for screen in screens])
    return float(np.sqrt(np.square(offsets).sum(0).mean()))


def measure_path(points: np.ndarray, viewmat: np.ndarray, K: np.ndarray, shake: np.ndarray) -> float:
    """Returns the mean length, px, of the screen paths of world points [4, n] during the exposure."""
    screens = [K @ (shake_pose(viewmat, shake, t) @ points)[:3] for t in np.linspace(-0.5, 0.5, 17)]
    places = np.stack([screen[:2] / screen[2] for screen in screens])
    return float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum(0).mean())


def scale_shake(
    world: raycast.World,
    viewmat: np.ndarray,
    K: np.ndarray,
    length: float,
    shake: np.ndarray,
    *,
    height: int,
    width: int,
) -> Float[np.ndarray, "3 6"]:
    """Scales a camera path, as `draw_shake` returns one, so that its mean length on the screen is `length` px."""
    points = find_visible_points(world, viewmat, K, height=height, width=width)
    shake = 0.02 * shake
    for _ in range(2):  # the length is nearly linear in the coefficients
        shake = shake * length / measure_path(points, viewmat, K, shake)
    return shake


def render_shaken(
    world: raycast.World,
    viewmat: np.ndarray,
    K: np.ndarray,
    shake: np.ndarray,
    length: float,
    *,
    height: int,
    width: int,
) -> Float[np.ndarray, "height width 3"]:
    """Renders the average, in linear light, along a camera path of a screen length of about `length` px."""
    num = max(16, math.ceil(1.25 * length))
    total = np.zeros((height, width, 3), np.float32)
    for i, (x, y) in enumerate(_spread_samples(num)):
        pose = shake_pose(viewmat, shake, (i + 0.5) / num - 0.5)
        total += raycast.render_frame(world, pose, _shift_center(K, x, y), height=height, width=width)[0]
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
    """Renders the average, in linear light, over a thin lens.

    depth: camera z of the plane of focus; aperture: diameter of the lens; both in scene units.
    """
    num = min(160, max(32, round(32 * (width / 128) ** 2)))
    focal = float(K[0, 0])
    total = np.zeros((height, width, 3), np.float32)
    for (u, v), (x, y) in zip(aperture / 2 * _spread_lens_points(num), _spread_samples(num), strict=True):
        pose = make_rigid(np.eye(3), np.array([-u, -v, 0.0])) @ viewmat
        # A point in the plane of focus projects to the same pixel from each point of the lens.
        lens_K = _shift_center(K, x - focal * u / depth, y - focal * v / depth)
        total += raycast.render_frame(world, pose, lens_K, height=height, width=width)[0]
    return total / num


def render_both(
    world: raycast.World,
    viewmat: np.ndarray,
    K: np.ndarray,
    exposure: Exposure,
    *,
    height: int,
    width: int,
) -> Float[np.ndarray, "height width 3"]:
    """Renders the average, in linear light, over a camera path and a thin lens at once.

    An aperture of 0 equals `render_shaken`, a length of 0 `render_defocused`.
    """
    size = {"height": height, "width": width}
    if not exposure.aperture:
        return render_shaken(world, viewmat, K, exposure.shake, exposure.length, **size)
    if not exposure.length:
        return render_defocused(world, viewmat, K, exposure.focus, exposure.aperture, **size)
    num = max(48, math.ceil(2.5 * exposure.length), min(160, round(48 * (width / 128) ** 2)))
    stride = next(n for n in range(round(0.62 * num), num) if math.gcd(n, num) == 1)
    lens_points = exposure.aperture / 2 * _spread_lens_points(num)
    focal, total = float(K[0, 0]), np.zeros((height, width, 3), np.float32)
    for i, (x, y) in enumerate(_spread_samples(num)):
        u, v = lens_points[
            i * stride % num
        ]  # in another order than the times, so that no part of the lens has its own time
        pose = shake_pose(viewmat, exposure.shake, (i + 0.5) / num - 0.5)
        pose = make_rigid(np.eye(3), np.array([-u, -v, 0.0])) @ pose
        lens_K = _shift_center(K, x - focal * u / exposure.focus, y - focal * v / exposure.focus)
        total += raycast.render_frame(world, pose, lens_K, **size)[0]
    return total / num
