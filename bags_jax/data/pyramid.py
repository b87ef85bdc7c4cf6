"""Image pyramid: the training views at the scales of the resolution schedule."""

import numpy as np
from jaxtyping import UInt8

from bags_jax.data.area import average_areas
from bags_jax.data.scene import Scene
from bags_jax.data.valid_pixels import shrink_valid
from bags_jax.structs import Camera, Dataset


def scale_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Returns the height and width of an image at a scale, at least 1 px."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: UInt8[np.ndarray, "_H _W 3"], scale: float) -> UInt8[np.ndarray, "_h _w 3"]:
    """Resizes an image to a scale <= 1, by area averaging."""
    if scale == 1:
        return image
    return average_areas(image, *scale_size(image.shape[0], image.shape[1], scale))


def make_dataset(scene: Scene, scale: float, *, extent: float = 1.0, near_plane: float = 0.2) -> Dataset:
    """Returns the training views at one image scale, padded at the right and bottom to the size of the largest.

    Args:
      scene: only its training views are used.
      scale: > 0 and <= 1; 1 is full size.
      extent: scale of the scene, scene units.
      near_plane: depth at which rendering begins, scene units.
    Returns:
      Dataset of NumPy arrays; the training program copies them to the device.
    """
    images = [resize(scene.images[i], scale) for i in scene.train_ids]
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    padded = np.zeros((len(images), *sizes.max(axis=0), 3), np.uint8)
    for canvas, image in zip(padded, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    valid = None
    if scene.valid is not None:
        valid = np.zeros(padded.shape[:3], bool)
        for canvas, view, (height, width) in zip(valid, scene.train_ids, sizes.tolist(), strict=True):
            canvas[:height, :width] = shrink_valid(scene.valid[view], height, width)
    full_sizes = np.array([scene.images[i].shape[:2] for i in scene.train_ids])
    zooms = np.concatenate([(sizes / full_sizes)[:, ::-1], np.ones((len(images), 1))], axis=1)  # of x, y and 1
    Ks = scene.Ks[scene.train_ids] * zooms[:, :, None]
    viewmats = scene.viewmats[scene.train_ids].astype(np.float32)
    return Dataset(
        images=padded,
        sizes=sizes,  # pyright: ignore[reportArgumentType]
        cameras=Camera(viewmat=viewmats, K=Ks.astype(np.float32)),  # pyright: ignore[reportArgumentType]
        extent=np.float32(extent),  # pyright: ignore[reportArgumentType]
        near_plane=np.float32(near_plane),  # pyright: ignore[reportArgumentType]
        valid=valid,
    )
