"""The state that training starts from: Gaussians on the points of the capture, or on random points."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.blur_model.protocol import BlurModel
from bags_jax.data.poses import ROUNDING, locate_cameras
from bags_jax.data.scene import Scene
from bags_jax.rendering import View
from bags_jax.scene.density import empty_stats
from bags_jax.scene.optimizer import Optimizers
from bags_jax.spherical_harmonics import SH_C0, num_coefficients
from bags_jax.structs import Gaussians, TrainState, network_name

EXTENT_MARGIN = 1.1
NEAR_SHARE = 0.25  # largest near plane, as a share of the scene extent


def scene_extent(viewmats: Float[np.ndarray, "V 4 4"]) -> float:
    """1.1 times the largest distance of a camera from the mean camera position, scene units (Kerbl et al. 2023)."""
    centers = locate_cameras(viewmats)
    extent = float(EXTENT_MARGIN * np.linalg.norm(centers - centers.mean(axis=0), axis=-1).max())
    rounding = ROUNDING * max(1.0, float(np.abs(centers).max()))  # cameras on a tripod share one centre
    return extent if extent > rounding else 1.0


def near_plane(extent: float) -> float:
    """Depth at which rendering begins, scene units: 0.2 as in 3DGS, less in small scenes, where 0.2 may lie behind the subject."""
    return min(View.near_plane, NEAR_SHARE * extent)


def random_points(scene: Scene, num: int, seed: int) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """Random points and colours: in the frustums of the training views where the capture gives depth bounds, else in a cube."""
    rng = np.random.default_rng(seed)
    points = _points_in_cube(scene, num, rng) if scene.depths is None else _points_in_frustums(scene, num, rng)
    return points.astype(np.float32), rng.uniform(size=(num, 3)).astype(np.float32)


def _points_in_cube(scene: Scene, num: int, rng: np.random.Generator) -> Float[np.ndarray, "P 3"]:
    """Uniform in a cube of twice the extent to each side, centred ahead of the training cameras."""
    viewmats = scene.viewmats[scene.train_ids]
    extent = scene_extent(viewmats)
    centers = locate_cameras(viewmats)
    ahead = viewmats[:, 2, :3].mean(axis=0)
    middle = centers.mean(axis=0) + extent * ahead / max(float(np.linalg.norm(ahead)), 1e-6)
    return middle + rng.uniform(-2.0 * extent, 2.0 * extent, (num, 3))


def _points_in_frustums(scene: Scene, num: int, rng: np.random.Generator) -> Float[np.ndarray, "P 3"]:
    """Each on the ray of a random pixel of a random training view, uniform in inverse depth."""
    assert scene.depths is not None
    views = scene.train_ids[rng.integers(len(scene.train_ids), size=num)]
    sizes = np.array([image.shape[1::-1] for image in scene.images])[views]
    pixels = np.concatenate([rng.uniform(size=(num, 2)) * sizes, np.ones((num, 1))], axis=-1)
    nearest, farthest = 1.0 / scene.depths[views].T.astype(np.float64)
    depths = 1.0 / rng.uniform(farthest, nearest)
    in_camera = depths[:, None] * np.einsum("pij,pj->pi", np.linalg.inv(scene.Ks[views].astype(np.float64)), pixels)
    viewmats = scene.viewmats[views]
    return np.einsum("pji,pj->pi", viewmats[:, :3, :3], in_camera - viewmats[:, :3, 3])


def neighbour_distance(points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P"]:
    """Root mean squared distance to the 3 nearest points (fewer where there are fewer), scene units, never 0."""
    from scipy.spatial import KDTree  # imported here, because importing scipy takes longer than importing this package

    num_near = min(3, len(points) - 1)
    if num_near < 1:
        return np.full(len(points), 1.0)
    distances, _ = KDTree(points).query(points, k=num_near + 1)
    return np.sqrt(np.maximum(np.mean(distances[:, 1:] ** 2, axis=-1), 1e-7))


def init_gaussians(
    points: Float[np.ndarray, "P 3"],
    colors: Float[np.ndarray, "P 3"],
    *,
    capacity: int,
    sh_degree: int,
    opacity: float,
) -> Gaussians:
    """Round Gaussians on the points, as large as the distance to their neighbours (Kerbl et al. 2023, section 5.1).

    Returns `capacity` rows; those after the points are padding.
    """
    num = len(points)
    scales = jnp.asarray(neighbour_distance(points), jnp.float32)

    def rows(values):
        return jnp.pad(values, [(0, capacity - num)] + [(0, 0)] * (values.ndim - 1)).astype(jnp.float32)

    return Gaussians(
        means=rows(jnp.asarray(points)),
        quats=rows(jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (num, 1))),
        log_scales=rows(jnp.tile(jnp.log(scales)[:, None], (1, 3))),
        logit_opacities=rows(jnp.full(num, np.log(opacity / (1.0 - opacity)))),
        sh_dc=rows((jnp.asarray(colors)[:, None, :] - 0.5) / SH_C0),
        sh_rest=jnp.zeros((capacity, num_coefficients(sh_degree) - 1, 3)),
    )


def init_state(
    gaussians: Gaussians,
    alive: Bool[Array, "N"],
    *,
    num_views: int,
    model: BlurModel | None = None,
    num_networks: int = 1,
    seed: int = 0,
) -> TrainState:
    """Returns the state at step 0, without optimisers: `with_optimizers` adds them for training.

    Args:
      gaussians: as `init_gaussians` returns them.
      alive: the rows in use.
      num_views: number of training views.
      model: the blur model; None: plain splatting.
      num_networks: number of parameter sets of the blur model, 1 or 2.
      seed: of the blur model and of the order of the views.
    """
    networks = {} if model is None else init_networks(model, num_networks, seed)
    num = alive.shape[0]
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.int32(seed),
        gaussians=gaussians,
        alive=alive,
        filter_3d=jnp.zeros(num),
        network=networks,
        gaussians_opt=(),
        network_opt=(),
        poses=jnp.zeros((num_views, 6)),
        poses_opt=(),
        exposures=jnp.zeros((num_views, 3)),
        exposures_opt=(),
        blur_px=jnp.zeros(num_views),
        density=empty_stats(num),
    )


def init_networks(model: BlurModel, num_networks: int, seed: int) -> dict[str, Any]:
    """The first parameters of the blur model, by network_name."""
    keys = jax.random.split(jax.random.key(seed), num_networks)
    return {network_name(i): model.init_params(key) for i, key in enumerate(keys)}


def with_optimizers(state: TrainState, optimizers: Optimizers) -> TrainState:
    """Adds the initial states of the optimisers."""
    return dataclasses.replace(
        state,
        gaussians_opt=optimizers.gaussians.init(
            cast(Any, state.gaussians)
        ),  # optax's type of a pytree knows no structs
        network_opt=optimizers.network.init(state.network),
        poses_opt=optimizers.poses.init(state.poses),
        exposures_opt=optimizers.exposures.init(state.exposures),
    )
