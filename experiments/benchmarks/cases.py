"""Random scenes for the benchmarks: a cloud of Gaussians in front of one camera, and a training step on it."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bags_jax.ops.rasterize import buffer_size
from bags_jax.programs import largest_count
from bags_jax.rendering import View
from bags_jax.scene.initialize import init_gaussians, init_state, with_optimizers
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.schedule import Stage
from bags_jax.settings import Loss, Optim
from bags_jax.step import Recipe
from bags_jax.structs import Camera, Dataset

COVER = 3.0  # sum of (2 sigma_px)^2 over the image area: about 25 blended Gaussians per pixel
TRAINED = ("means", "means_final", "quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest")
RATE = 1e-6  # learning rate of TRAINED: small, so that the scene does not change while it is timed


class Cloud(NamedTuple):
    """Positions and sizes of Gaussians. The camera is at the origin and looks along +z."""

    means: Float[np.ndarray, "N 3"]
    sigmas: Float[np.ndarray, "N"]
    K: Float[np.ndarray, "3 3"]


def make_cloud(rng: np.random.Generator, num: int, width: int, height: int) -> Cloud:
    """Makes a cloud whose sizes depend on `num` and the image size, so that it covers the image COVER times."""
    depth = rng.uniform(2.0, 6.0, num)
    spread = rng.uniform(-0.6, 0.6, (num, 2)) * np.array([1.0, height / width])
    focal = width / 1.2
    sigmas = np.sqrt(COVER * width * height / num) / 2.0 / focal * depth
    means = np.concatenate([spread * depth[:, None], depth[:, None]], axis=-1)
    return Cloud(means, sigmas, np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]))


def make_case(num: int, width: int, height: int):
    """Makes the state, dataset and recipe of a plain training step on a cloud and one camera."""
    rng = np.random.default_rng(0)
    cloud = make_cloud(rng, num, width, height)
    optimizers = make_optimizers(Optim(**dict.fromkeys(TRAINED, RATE)), None, restart=0, num_steps=1000)
    points, colors = cloud.means.astype(np.float32), rng.uniform(size=(num, 3)).astype(np.float32)
    gaussians = init_gaussians(points, colors, capacity=num, sh_degree=3, opacity=0.3)
    scales = np.log(cloud.sigmas)[:, None] + rng.normal(0.0, 0.3, (num, 3))
    gaussians = dataclasses.replace(
        gaussians,
        quats=jnp.asarray(rng.normal(size=(num, 4)), jnp.float32),
        log_scales=jnp.asarray(scales, jnp.float32),
    )
    state = with_optimizers(init_state(gaussians, jnp.ones(num, bool), num_views=1), optimizers)
    photo = jnp.asarray(rng.integers(0, 255, (1, height, width, 3)), jnp.uint8)
    cameras = Camera(jnp.eye(4)[None], jnp.asarray(cloud.K, jnp.float32)[None])
    dataset = Dataset(photo, jnp.array([[height, width]]), cameras, extent=jnp.float32(1), near_plane=jnp.float32(0.2))
    view = View(width, height, 0)
    view = View(width, height, buffer_size(int(1.05 * largest_count(state, dataset, view))))
    recipe = Recipe(Stage(0, 1000, 1.0, 0, 0), view, Loss(confidence=0.0), optimizers, None, 1, 1, 0)
    return state, dataset, recipe
