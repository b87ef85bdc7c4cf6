"""Layout: a world of the embedded scenes with its cameras."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from bags_jax.synthetic.exposures import draw_shake
from bags_jax.synthetic.raycast import World
from bags_jax.synthetic.sensor import Sensor

# (index, num_train, key) -> camera centre [3], target in the image centre [3] (both world frame), roll (rad). Training
# cameras have the indices 0 to num_train - 1. The index of a test camera lies halfway between two of them.
PlaceCamera = Callable[[float, int, np.random.Generator], tuple[np.ndarray, np.ndarray, float]]
# (cam_from_world in the middle of the exposure, key) -> path of the camera as exposures.shake_pose takes it, of any length
DrawMotion = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A world and its cameras. Each world file exports one as LAYOUT."""

    make_world: Callable[[], World]  # returns the same object at every call
    place_camera: PlaceCamera
    focal: float  # focal length over image width
    aperture: float  # diameter of the lens, scene units
    focus_depths: tuple[float, float, float]  # near, middle, far, scene units
    point_noise: float  # standard deviation of the points, scene units: about 1 % of the depths
    # The fields below have defaults for rooms by day.
    draw_motion: DrawMotion = lambda _, key: draw_shake(key)  # how the camera moves during an exposure; default: a hand
    sensor: Sensor | None = None  # noise of the training photographs; None: none
    grows_with_depth: bool = False  # point_noise is a share of the depth
    farthest_point: float = math.inf  # structure from motion finds no points beyond, scene units
