"""Image pyramid: the training views at the scales of the resolution schedule."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

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


def training_sizes(scene: Scene, scale: float) -> Int[np.ndarray, "V 2"]:
    """Returns height and width of each training view at an image scale, px."""
    shapes = [scene.images[i].shape for i in scene.train_ids]
    return np.array([scale_size(height, width, scale) for height, width, _ in shapes], np.int32)


def training_intrinsics(scene: Scene, scale: float) -> Float[np.ndarray, "V 3 3"]:
    """Returns the intrinsics of each training view at an image scale, px."""
    full_sizes = np.array([scene.images[i].shape[:2] for i in scene.train_ids])
    zooms = (training_sizes(scene, scale) / full_sizes)[:, ::-1]
    zooms = np.concatenate([zooms, np.ones((len(zooms), 1))], axis=1)  # of x, y and 1
    return (scene.Ks[scene.train_ids] * zooms[:, :, None]).astype(np.float32)


def photograph_at(
    scene: Scene, view: int | np.integer, scale: float
) -> tuple[UInt8[np.ndarray, "_h _w 3"], Bool[np.ndarray, "_h _w"] | None]:
    """Returns one photograph of a scene at an image scale, and its valid pixels where the capture has masks."""
    image = resize(scene.images[view], scale)
    return image, None if scene.valid is None else shrink_valid(scene.valid[view], *image.shape[:2])


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
    dataset = make_bare_dataset(scene, scale, num_rows=len(scene.train_ids), extent=extent, near_plane=near_plane)
    for row, view in enumerate(scene.train_ids):
        put_photograph(dataset, row, *photograph_at(scene, view, scale))
    return dataset


def make_bare_dataset(scene: Scene, scale: float, *, num_rows: int, extent: float, near_plane: float) -> Dataset:
    """Returns the dataset of make_dataset with space for some photographs, all black."""
    sizes = training_sizes(scene, scale)
    images = np.zeros((num_rows, *sizes.max(axis=0).tolist(), 3), np.uint8)
    cameras: dict = {
        "viewmat": scene.viewmats[scene.train_ids].astype(np.float32),
        "K": training_intrinsics(scene, scale),
    }
    return Dataset(
        images=images,
        sizes=sizes,  # pyright: ignore[reportArgumentType]
        cameras=Camera(**cameras),
        extent=np.float32(extent),  # pyright: ignore[reportArgumentType]
        near_plane=np.float32(near_plane),  # pyright: ignore[reportArgumentType]
        valid=None if scene.valid is None else np.zeros(images.shape[:3], bool),
    )


def put_photograph(dataset: Dataset, row: int, image: np.ndarray, valid: np.ndarray | None) -> None:
    """Writes a photograph into a row of the arrays of a dataset on the host."""
    height, width = image.shape[:2]
    dataset.images[row, :height, :width] = image
    if valid is not None:
        dataset.valid[row, :height, :width] = valid
