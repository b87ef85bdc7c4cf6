"""Layout: a world of the embedded scenes with its cameras."""

import dataclasses
from collections.abc import Callable

import numpy as np

from bags_jax.synthetic.raycast import World

# (index, num_train, key) -> camera centre [3], target in the image centre [3] (both world frame), roll (rad). Training
# cameras have the indices 0 to num_train - 1. The index of a test camera lies halfway between two of them.
PlaceCamera = Callable[[float, int, np.random.Generator], tuple[np.ndarray, np.ndarray, float]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A world and its cameras. Each world file exports one as LAYOUT."""

    make_world: Callable[[], World]  # returns the same object at every call
    place_camera: PlaceCamera
    focal: float  # focal length over image width
    aperture: float  # diameter of the lens, scene units
    focus_depths: tuple[float, float, float]  # near, middle, far, scene units
    point_noise: float  # standard deviation of the points, scene units: about 1 % of the depths
