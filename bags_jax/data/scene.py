"""Scene: what every loader returns and all that training ever sees of a capture (numpy, on the host)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from bags_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scene:
    """V posed photographs and a sparse point cloud. Views are sorted by name."""

    names: tuple[str, ...]  # file name of each view
    images: tuple[UInt8[np.ndarray, "_H _W 3"], ...]  # sRGB, background applied; sizes may differ
    viewmats: Float[np.ndarray, "V 4 4"]  # cam_from_world, OpenCV axes, scene units
    Ks: Float[np.ndarray, "V 3 3"]  # intrinsics of the images as they are here, px, pixel centres at +0.5
    train_ids: Int[np.ndarray, "_A"]  # indices of training views
    test_ids: Int[np.ndarray, "_B"]  # indices of held-out views
    points: Float[np.ndarray, "P 3"]  # world frame; P = 0: none came with the capture
    point_colors: Float[np.ndarray, "P 3"]  # sRGB in [0, 1]
    sharp_images: tuple[UInt8[np.ndarray, "_H _W 3"], ...] | None = None  # truth for every view, where it is known
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)  # colour behind the scene, sRGB in [0, 1]
    notes: tuple[str, ...] = ()  # what the loader wants the user to know, one line each
    depths: Float[np.ndarray, "V 2"] | None = None  # nearest and farthest that each view sees, if the capture says so


def train_on_sharp(scene: Scene) -> Scene:
    """The oracle's scene: the training photographs are replaced by their sharp truth, everything else stays.

    Raises:
      UserError: the sharp truth is not known.
    """
    if scene.sharp_images is None:
        raise UserError(
            "config.data.use_sharp is set, but no sharp truth came with the capture: only the embedded scenes "
            "(configs/procedural.py) and data.mixed_factors know it"
        )
    images = list(scene.images)
    for view in scene.train_ids:
        images[view] = scene.sharp_images[view]
    return dataclasses.replace(scene, images=tuple(images))
