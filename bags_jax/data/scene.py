"""Scene: a capture as training receives it (NumPy arrays in host memory)."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from bags_jax.data.spool import Spool
from bags_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scene:
    """V posed photographs and a sparse point cloud. Views are sorted by name."""

    names: tuple[str, ...]  # file name of each view
    images: tuple[UInt8[np.ndarray, "_H _W 3"], ...]  # sRGB, background applied; sizes may differ
    viewmats: Float[np.ndarray, "V 4 4"]  # cam_from_world, OpenCV axes, scene units
    Ks: Float[np.ndarray, "V 3 3"]  # intrinsics of `images`, px, pixel centres at +0.5
    train_ids: Int[np.ndarray, "_A"]  # indices of training views
    test_ids: Int[np.ndarray, "_B"]  # indices of held-out views
    points: Float[np.ndarray, "P 3"]  # world frame; P = 0: the capture has no points
    point_colors: Float[np.ndarray, "P 3"]  # sRGB in [0, 1]
    sharp_images: tuple[UInt8[np.ndarray, "_H _W 3"], ...] | None = None  # sharp truth of every view, if known
    blur_px: tuple[Float[np.ndarray, "_H _W"], ...] | None = (
        None  # true RMS blur of every pixel, px, if known; 0: sharp
    )
    valid: tuple[Bool[np.ndarray, "_H _W"], ...] | None = None  # pixels of `images` to use; None: all
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)  # colour behind the scene, sRGB in [0, 1]
    notes: tuple[str, ...] = ()  # messages of the loader to the user, one line each
    spool: Spool | None = None  # the file that holds the pictures of a capture larger than the memory
    depths: Float[np.ndarray, "V 2"] | None = None  # nearest and farthest depth of each view, if the capture has them


def train_on_sharp(scene: Scene) -> Scene:
    """Returns the scene with its sharp truth as training photographs: the oracle of the benchmarks.

    Raises:
      UserError: the scene has no sharp truth.
    """
    if scene.sharp_images is None:
        raise UserError(
            "config.data.use_sharp is set, but no sharp truth came with the capture: expected an embedded scene "
            "(configs/procedural.py) or data.mixed_factors; set use_sharp to False"
        )
    images, blur_px = list(scene.images), list(scene.blur_px or ())
    for view in scene.train_ids:
        images[view] = scene.sharp_images[view]
        if blur_px:
            blur_px[view] = np.zeros_like(blur_px[view])
    return dataclasses.replace(scene, images=tuple(images), blur_px=tuple(blur_px) or None)
