"""The state that training starts from."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

from bags_jax.blur_model.proposal_network import BlurProposalNetwork, init_network
from bags_jax.data.poses import ROUNDING, camera_centers
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.rendering import View
from bags_jax.scene.density import empty_stats
from bags_jax.scene.optimizer import Optimizers
from bags_jax.spherical_harmonics import SH_C0, num_coefficients
from bags_jax.step import network_name
from bags_jax.structs import Gaussians, TrainState

EXTENT_MARGIN = 1.1
NEAR_SHARE = 0.25  # of the scene extent, that pictures begin at, at most


def scene_extent(viewmats: Float[np.ndarray, "V 4 4"]) -> float:
    """1.1 times the largest distance of a camera from the mean camera position, scene units (Kerbl et al. 2023)."""
    centers = camera_centers(viewmats)
    extent = float(EXTENT_MARGIN * np.linalg.norm(centers - centers.mean(axis=0), axis=-1).max())
    rounding = ROUNDING * max(1.0, float(np.abs(centers).max()))  # cameras on a tripod stand in one place
    return extent if extent > rounding else 1.0


def near_plane(extent: float) -> float:
    """Depth at which pictures begin, scene units: 3DGS's 0.2; nearer in small units, where that may be behind the subject."""
    return min(View.near_plane, NEAR_SHARE * extent)


def random_points(scene: Scene, num: int, seed: int) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """Random points and colours: in the training views' frustums between the depths that the capture tells, else in a cube."""
    rng = np.random.default_rng(seed)
    points = _points_in_cube(scene, num, rng) if scene.depths is None else _points_in_frustums(scene, num, rng)
    return points.astype(np.float32), rng.uniform(size=(num, 3)).astype(np.float32)


def _points_in_cube(scene: Scene, num: int, rng: np.random.Generator) -> Float[np.ndarray, "P 3"]:
    """Uniform in the cube of twice the extent around where the training cameras look."""
    viewmats = scene.viewmats[scene.train_ids]
    extent = scene_extent(viewmats)
    centers = camera_centers(viewmats)
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
    """Round Gaussians on the points, as large as their neighbours are far (Kerbl et al. 2023, section 5.1)."""
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
    points: Float[np.ndarray, "P 3"],
    colors: Float[np.ndarray, "P 3"],
    network: BlurProposalNetwork | None,
    optimizers: Optimizers,
    *,
    capacity: int,
    num_views: int,
    sh_degree: int = 3,
    opacity: float = 0.1,
    num_networks: int = 1,
    seed: int = 0,
) -> TrainState:
    """A state at step 0.

    Raises:
      UserError: more points than rows.
    """
    if len(points) > capacity:
        raise UserError(
            f"{len(points)} points came for at most {capacity} Gaussians: raise config.max_gaussians above the points"
        )
    gaussians = init_gaussians(points, colors, capacity=capacity, sh_degree=sh_degree, opacity=opacity)
    keys = jax.random.split(jax.random.key(seed), num_networks)
    poses = jnp.zeros((num_views, 6))
    params = {} if network is None else {network_name(i): init_network(network, k) for i, k in enumerate(keys)}
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.int32(seed),
        gaussians=gaussians,
        alive=jnp.arange(capacity) < len(points),
        filter_3d=jnp.zeros(capacity),
        network=params,
        gaussians_opt=optimizers.gaussians.init(cast(Any, gaussians)),  # optax's type of a pytree knows no structs
        network_opt=optimizers.network.init(params),
        poses=poses,
        poses_opt=optimizers.poses.init(poses),
        blur_px=jnp.zeros(num_views),
        density=empty_stats(capacity),
    )
