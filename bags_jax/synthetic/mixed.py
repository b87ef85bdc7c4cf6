"""Captures of mixed resolution: some photographs have less detail than their pixels could hold."""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bags_jax.data.area import average_areas
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.synthetic import true_blur


def coarsen(image: UInt8[np.ndarray, "_H _W 3"], factor: int) -> UInt8[np.ndarray, "_H _W 3"]:
    """Returns the image of a camera with 1 / factor of the resolution: areas averaged, then enlarged again."""
    height, width = image.shape[:2]
    coarse = average_areas(image, max(1, round(height / factor)), max(1, round(width / factor)))
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def reduce_and_enlarge(image: UInt8[np.ndarray, "_H _W 3"], factor: int) -> UInt8[np.ndarray, "_H _W 3"]:
    """Returns an image of 1 / factor of the resolution as the authors of BAGS made theirs: bicubic, down and up again."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize(
        (max(1, round(width / factor)), max(1, round(height / factor))), Image.Resampling.BICUBIC
    )
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def mix_resolutions(scene: Scene, factors: tuple[int, ...], *, seed: int) -> Scene:
    """Coarsens the training views: the mixed-resolution protocol of BAGS (Peng et al. 2024, section 4.3).

    Each factor is used for an equal share of the views, in random order. The held-out views stay sharp. `sharp_images`
    of the result are the photographs before.

    Raises:
      UserError: a factor under 1.
    """
    if not factors:
        return scene
    if min(factors) < 1:
        raise UserError(
            f"data.mixed_factors is {tuple(factors)}: expected downscale factors of at least 1, such as (1, 2, 4, 8)"
        )
    views = np.random.default_rng(seed).permutation(scene.train_ids)
    images, blur_px = list(scene.images), [true_blur.still(*image.shape[:2]) for image in scene.images]
    for i, view in enumerate(views):
        factor = factors[i % len(factors)]
        images[view] = coarsen(images[view], factor)
        blur_px[view] = true_blur.of_resolution(factor, *images[view].shape[:2])
    return dataclasses.replace(scene, images=tuple(images), sharp_images=scene.images, blur_px=tuple(blur_px))
