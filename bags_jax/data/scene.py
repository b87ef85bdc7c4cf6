"""Scene: what every loader returns and all that training ever sees of a capture (numpy, on the host)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8


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
