"""A random cloud of Gaussians before one camera that covers the image equally often whatever its number and size."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

COVER = 3.0  # how often it covers the image, one standard deviation to each side: some 25 blended a pixel


class Cloud(NamedTuple):
    """Places and sizes; the camera sits at the origin and looks along z."""

    means: Float[np.ndarray, "N 3"]
    sigmas: Float[np.ndarray, "N"]
    K: Float[np.ndarray, "3 3"]


def make_cloud(rng: np.random.Generator, num: int, width: int, height: int) -> Cloud:
    """Draws from `rng`, which goes on to what else a benchmark needs."""
    depth = rng.uniform(2.0, 6.0, num)
    spread = rng.uniform(-0.6, 0.6, (num, 2)) * np.array([1.0, height / width])
    focal = width / 1.2
    sigmas = np.sqrt(COVER * width * height / num) / 2.0 / focal * depth
    means = np.concatenate([spread * depth[:, None], depth[:, None]], axis=-1)
    return Cloud(means, sigmas, np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]))
