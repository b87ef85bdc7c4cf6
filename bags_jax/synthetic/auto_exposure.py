"""Photographs as a camera with automatic exposure and white balance takes them."""

import dataclasses

import numpy as np

from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.synthetic.exposures import decode_srgb, encode_srgb

_WHITE_BALANCE = 0.25  # spread of the colours' own gains, as a share of that of the exposure


def vary_exposures(scene: Scene, spread: float, *, seed: int) -> Scene:
    """Multiplies the light of each training photograph by random gains; the held-out views keep theirs.

    Args:
      spread: standard deviation of the logarithm of the exposure; 0: returns the scene as it is.
      seed: of the gains.
    Raises:
      UserError: a negative spread.
    """
    if spread < 0:
        raise UserError(f"synthetic.exposure_spread is {spread}: expected 0 or more, such as 0.2")
    if not spread:
        return scene
    rng, images = np.random.default_rng([seed, 5]), list(scene.images)
    for view in scene.train_ids:
        log_gains = spread * (rng.normal() + _WHITE_BALANCE * rng.normal(size=3))
        images[view] = change_exposure(images[view], np.exp(log_gains))
    return dataclasses.replace(scene, images=tuple(images))


def change_exposure(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Multiplies the light of an 8-bit sRGB image by three gains; white clips."""
    return encode_srgb(decode_srgb(image) * gains)
