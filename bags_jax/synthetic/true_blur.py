"""The true blur of every pixel of an embedded photograph, as RMS width in px: the square root of the mean squared distance
from the mean of the places from which light reaches the pixel.

It is the blur of the surface point that the sharp render shows in the middle of the pixel. Where surfaces at other depths
blur over it, light comes from farther or nearer than it says.
"""

import math

import numpy as np
from jaxtyping import Float

from bags_jax.synthetic import exposures, raycast

_TIMES = 17  # poses of an exposure


def still(height: int, width: int) -> Float[np.ndarray, "height width"]:
    """No blur."""
    return np.zeros((height, width), np.float32)


def of_shake(
    depths: Float[np.ndarray, "height width"], viewmat: np.ndarray, K: np.ndarray, shake: np.ndarray
) -> Float[np.ndarray, "height width"]:
    """Blur of a camera path: the spread of the places that a surface point passes on the screen.

    Args:
      depths: camera z of the surface in each pixel, scene units.
      viewmat, K: of the sharp view.
      shake: the path, as exposures.shake_pose takes it.
    """
    height, width = depths.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    origin, directions = raycast.make_camera_rays(viewmat, K, np.stack([columns.ravel(), rows.ravel()]))
    points = np.concatenate([origin + depths.ravel() * directions, np.ones((1, depths.size))])
    screens = [K @ (exposures.shake_pose(viewmat, shake, t) @ points)[:3] for t in np.linspace(-0.5, 0.5, _TIMES)]
    places = np.stack([screen[:2] / screen[2] for screen in screens])
    return np.sqrt(places.var(axis=0).sum(axis=0)).reshape(height, width).astype(np.float32)


def of_lens(
    depths: Float[np.ndarray, "height width"], focus: float, aperture: float, focal: float
) -> Float[np.ndarray, "height width"]:
    """Blur of a thin lens: a circle of confusion of radius R has the RMS width R / sqrt(2).

    Args:
      depths: camera z of the surface in each pixel, scene units.
      focus: camera z of the plane of focus, scene units.
      aperture: diameter of the lens, scene units.
      focal: focal length, px.
    """
    radius = 0.5 * aperture * focal * np.abs(1.0 / depths - 1.0 / focus)
    return (radius / math.sqrt(2.0)).astype(np.float32)


def of_resolution(factor: int, height: int, width: int) -> Float[np.ndarray, "height width"]:
    """Blur of 1 / factor of the resolution: the mean over squares of factor x factor px, beyond that of the pixel itself."""
    return np.full((height, width), math.sqrt((factor**2 - 1) / 6.0), np.float32)


def of_exposure(
    world: raycast.World, viewmat: np.ndarray, K: np.ndarray, exposure: exposures.Exposure, *, height: int, width: int
) -> Float[np.ndarray, "height width"]:
    """Blur of a camera path and a lens together. The two are independent of each other, so that their squares add."""
    depths = raycast.render_frame(world, viewmat, K, height=height, width=width)[1]
    by_motion = of_shake(depths, viewmat, K, exposure.shake) if exposure.length else still(height, width)
    if not exposure.aperture:
        return by_motion
    by_lens = of_lens(depths, exposure.focus, exposure.aperture, float(K[0, 0]))
    return np.hypot(by_motion, by_lens) if exposure.length else by_lens
