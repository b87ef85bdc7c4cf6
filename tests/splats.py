"""Small random scenes for the tests of the rasterizer. All have the same shapes, so that few programs are compiled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bags_jax.geometry import project
from bags_jax.ops.rasterize.reference import rasterize_reference
from bags_jax.structs import Camera, Projected

NUM, NUM_CAMERAS, WIDTH, HEIGHT = 32, 2, 37, 29  # not multiples of a tile
KINDS = ("typical", "behind", "off_screen", "needles", "giants", "transparent", "opaque")


class Splats(NamedTuple):
    """The arrays of `rasterization`, in its order."""

    means: Array
    quats: Array
    scales: Array
    opacities: Array
    colors: Array
    viewmats: Array
    Ks: Array


def rotation(axis, angle: float) -> np.ndarray:
    """Returns a rotation matrix by Rodrigues' formula, in float64."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def make_splats(kind: str = "typical", *, seed: int = 0, num: int = NUM) -> Splats:
    """Makes a cloud 4 units in front of two cameras with different intrinsics and off-centre principal points."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    means = rng.normal(size=(num, 3)) * [1.4, 1.1, 0.8] + [0, 0, 4]
    scales = np.exp(rng.normal(size=(num, 3)) * 0.6 - 1.6)
    opacities = rng.uniform(0.05, 0.95, num)
    if kind == "behind":
        means[::2, 2] -= 6
    if kind == "off_screen":
        means[::2, :2] *= 4
    if kind == "needles":
        scales *= [[8, 1, 0.02]]
    if kind == "giants":
        scales[::4] *= 100
    if kind == "transparent":
        opacities[::2] = rng.choice([0.0, 1 / 300, 0.02], num - num // 2)
    if kind == "opaque":
        opacities[::2] = 1.0
    viewmats = np.tile(np.eye(4), (NUM_CAMERAS, 1, 1))
    viewmats[1, :3, :3] = rotation([0.2, 1, -0.3], 0.3)
    viewmats[1, :3, 3] = [-0.8, 0.3, 0.4]
    Ks = np.array([[[30, 0, 16.3], [0, 32, 15.1], [0, 0, 1]], [[26, 0.5, 20.2], [0, 25, 13.7], [0, 0, 1]]])
    arrays = means, rng.normal(size=(num, 4)), scales, opacities, rng.uniform(size=(num, 3)), viewmats, Ks
    return Splats(*(jnp.asarray(x, jnp.float32) for x in arrays))


def project_splats(splats: Splats, camera: int, *, antialiased: bool = False) -> Projected:
    """Projects to one camera."""
    view = Camera(splats.viewmats[camera], splats.Ks[camera])
    return project(*splats[:4], view, width=WIDTH, height=HEIGHT, antialiased=antialiased)


def rasterize_dense(splats: Splats, *, antialiased: bool = False) -> tuple[Array, Array]:
    """Renders with the oracle like render_mode="RGB+D": colours with depth, and alphas, of every camera."""
    outputs = []
    for camera in range(splats.viewmats.shape[0]):
        projected = project_splats(splats, camera, antialiased=antialiased)
        features = jnp.concatenate([splats.colors, projected.depths[:, None]], axis=-1)
        outputs.append(rasterize_reference(projected, features, width=WIDTH, height=HEIGHT))
    return jnp.stack([o.colors for o in outputs]), jnp.stack([o.alphas for o in outputs])[..., None]


def alphas_in_order(projected: Projected, *, width: int, height: int, x0: int = 0, y0: int = 0) -> np.ndarray:
    """Returns alpha [H, W, N] of all Gaussians at all pixels, front to back, in float64, clamped, not cut at 1/255."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), projected)
    x, y = np.meshgrid(np.arange(x0, x0 + width) + 0.5, np.arange(y0, y0 + height) + 0.5)
    dx, dy = x[..., None] - p.means_px[:, 0], y[..., None] - p.means_px[:, 1]
    sigma = 0.5 * (p.conics[:, 0] * dx**2 + p.conics[:, 2] * dy**2) + p.conics[:, 1] * dx * dy
    alphas = np.where(p.radii_px[:, 0] > 0, np.minimum(p.opacities * np.exp(-sigma), 0.999), 0.0)
    return alphas[..., np.argsort(p.depths, kind="stable")]


def on_cutoff(alphas: np.ndarray, *, tolerance: float = 1e-5) -> np.ndarray:
    """Returns the pixels where rounding decides what is drawn: alpha at 1/255, or transmittance at 1e-4."""
    behind = np.cumprod(1.0 - np.where(alphas >= 1 / 255, alphas, 0.0), axis=-1)
    # A product of many factors has a larger rounding error than one alpha.
    return ((abs(alphas * 255 - 1) < tolerance) | (abs(behind * 1e4 - 1) < 100 * tolerance)).any(axis=-1)
