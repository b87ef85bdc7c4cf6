"""Layout: a world of the embedded scenes, and how it is photographed."""

import dataclasses
from collections.abc import Callable

import numpy as np

from bags_jax.synthetic.raycast import World

# (index, num_train, key) -> camera centre [3], the point it looks at [3] (world frame), roll in rad. Training cameras
# have the indices 0 to num_train - 1; a test camera the index halfway between two of them.
PlaceCamera = Callable[[float, int, np.random.Generator], tuple[np.ndarray, np.ndarray, float]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One world file exports one of these as LAYOUT."""

    make_world: Callable[[], World]  # the same object at every call
    place_camera: PlaceCamera
    focal: float  # focal length over image width
    aperture: float  # diameter of the lens, scene units
    focus_depths: tuple[float, float, float]  # near, middle, far, scene units
    point_noise: float  # of the points, scene units: about 1 % of what the cameras see
