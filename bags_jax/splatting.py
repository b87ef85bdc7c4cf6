"""`rasterization`: 3D Gaussians seen by C cameras, with gsplat's names and meaning (gsplat 1.5, `gsplat.rendering`)."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.geometry import camera_center, project
from bags_jax.numerics import safe_normalize
from bags_jax.ops.backends import choose
from bags_jax.ops.rasterize import batches_cameras, measure_buffer, rasterize
from bags_jax.platforms import follows_arrays
from bags_jax.spherical_harmonics import MAX_DEGREE, evaluate_sh, num_coefficients
from bags_jax.structs import Camera, Projected

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")


@follows_arrays
def rasterization(
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"],
    scales: Float[Array, "N 3"],
    opacities: Float[Array, "N"],
    colors: Float[Array, "N D"] | Float[Array, "N L 3"],
    viewmats: Float[Array, "C 4 4"],
    Ks: Float[Array, "C 3 3"],
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Float[Array, "C D"] | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
    tile_size: int | None = None,
    max_intersections: int | None = None,
    backend: str = "auto",
    deterministic: bool = False,
) -> tuple[Float[Array, "C H W E"], Float[Array, "C H W 1"], dict[str, Array]]:
    """Renders N Gaussians with C cameras, in float32; a pure function, differentiable in every array.

    A Gaussian with a NaN or an infinity, colours included, is culled.

    Args:
      means, quats, scales, opacities: world frame; quaternions wxyz of any norm, scales as standard deviations in
        scene units, opacities in [0, 1].
      colors: D channels, or with sh_degree SH coefficients of which the first (sh_degree + 1)^2 are used.
      viewmats: cam_from_world, OpenCV axes (+x right, +y down, +z forward).
      Ks: intrinsics in px, pixel centres at +0.5.
      width, height: image size, px.
      near_plane, far_plane: depth range, scene units.
      eps2d: variance added to the screen covariance, px^2.
      sh_degree: None if colors are colours.
      backgrounds: what shows where alpha < 1 (colour channels only, never depth).
      render_mode: RGB, D (sum of weight times camera z), ED (D / alpha), or colour with one of them as last channel.
      rasterize_mode: "antialiased" multiplies the opacity by sqrt(det before / det after) of adding eps2d.
      tile_size: see `rasterize`.
      max_intersections: room for pairs of tile and Gaussian in each image. None: outside jit it is counted, under jit
        it is a guess; meta["num_dropped"] says whether it was enough.
      backend, deterministic: see `rasterize`.
    Returns:
      colors, alphas, and meta: means2d [C,N,2] px, radii [C,N,2] px (int, rounded up, 0 = culled), depths [C,N],
      conics [C,N,3], opacities [C,N], num_intersections [C], num_dropped [C].
    Raises:
      ValueError: shapes that do not fit, an unknown mode, too few SH coefficients.
    Differentiable once, in reverse mode. Over several devices: within jax.pmap, or jax.shard_map with check_vma=False; jit
    alone cannot share out kernels.
    """
    _check_shapes(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds)
    _check_modes(render_mode, rasterize_mode)
    _check_harmonics(sh_degree, colors)
    means, quats, scales, opacities, colors, viewmats, Ks, backgrounds = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), (means, quats, scales, opacities, colors, viewmats, Ks, backgrounds)
    )
    name = choose("rasterize", backend)  # here, so that a program is cached for what "auto" meant when it was made
    how = _How(width, height, near_plane, far_plane, eps2d, rasterize_mode, tile_size, name, deterministic)
    colored = jnp.isfinite(colors).reshape(colors.shape[0], math.prod(colors.shape[1:])).all(axis=1)
    colors = jnp.where(colored.reshape(-1, *(1,) * (colors.ndim - 1)), colors, 0.0)
    gaussians, cameras = (means, quats, scales, jnp.where(colored, opacities, 0.0)), Camera(viewmats, Ks)
    if max_intersections is None and means.shape[0]:
        max_intersections = _room(gaussians, cameras, how)
    projected, image = _render(gaussians, colors, cameras, how, sh_degree, render_mode, max_intersections)
    output = _compose(image.colors, image.alphas[..., None], backgrounds, render_mode)
    meta = {
        "means2d": projected.means_px,
        "radii": jnp.ceil(projected.radii_px).astype(jnp.int32),
        "depths": projected.depths,
        "conics": projected.conics,
        "opacities": projected.opacities,
        "num_intersections": image.num_intersections,
        "num_dropped": image.num_dropped,
    }
    return output, image.alphas[..., None], meta


class _How(NamedTuple):
    """The static part of a projection and a rasterization."""

    width: int
    height: int
    near_plane: float
    far_plane: float
    eps_2d: float
    rasterize_mode: str
    tile_size: int | None
    backend: str
    deterministic: bool

    def project(self, gaussians, camera: Camera) -> Projected:
        means, quats, scales, opacities = gaussians
        return project(
            means,
            quats,
            scales,
            opacities,
            camera,
            width=self.width,
            height=self.height,
            near_plane=self.near_plane,
            far_plane=self.far_plane,
            eps_2d=self.eps_2d,
            antialiased=self.rasterize_mode == "antialiased",
        )


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _render(gaussians, colors, cameras: Camera, how: _How, sh_degree, render_mode, max_intersections):
    def render_one(camera: Camera):
        projected = how.project(gaussians, camera)
        features = _features(gaussians[0], colors, projected, camera, sh_degree=sh_degree, render_mode=render_mode)
        return projected, rasterize(
            projected,
            features,
            width=how.width,
            height=how.height,
            tile_size=how.tile_size,
            max_intersections=max_intersections,
            backend=how.backend,
            deterministic=how.deterministic,
        )

    if batches_cameras(how.backend):
        return jax.vmap(render_one)(cameras)
    # One camera after the other: under vmap every loop would run as long as the longest of all cameras.
    return jax.lax.map(render_one, cameras)


def _room(gaussians, cameras: Camera, how: _How) -> int:
    """Room for the pairs of the most demanding camera."""
    gaussians, cameras = jax.lax.stop_gradient((gaussians, cameras))
    size = {"width": how.width, "height": how.height, "tile_size": how.tile_size, "backend": how.backend}
    one_each = [jax.tree.map(lambda x, i=i: x[i], cameras) for i in range(cameras.K.shape[0])]
    return max((measure_buffer(_project(gaussians, camera, how), **size) for camera in one_each), default=1024)


@functools.partial(jax.jit, static_argnums=2)
def _project(gaussians, camera: Camera, how: _How) -> Projected:
    return how.project(gaussians, camera)


def _check_modes(render_mode: str, rasterize_mode: str) -> None:
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode={render_mode!r} came, expected one of {', '.join(RENDER_MODES)}")
    if rasterize_mode not in RASTERIZE_MODES:
        raise ValueError(f"rasterize_mode={rasterize_mode!r} came, expected one of {', '.join(RASTERIZE_MODES)}")


def _check_harmonics(sh_degree: int | None, colors) -> None:
    if sh_degree is None and colors.ndim != 2:
        raise ValueError(f"colors of shape {colors.shape} came without sh_degree: pass sh_degree, or colors [N, D]")
    if sh_degree is None:
        return
    if not 0 <= sh_degree <= MAX_DEGREE:
        raise ValueError(f"sh_degree={sh_degree} came, expected 0 to {MAX_DEGREE}, or None if colors are colours")
    if colors.ndim != 3 or colors.shape[1] < num_coefficients(sh_degree):
        raise ValueError(
            f"sh_degree={sh_degree} needs colors [N, >= {num_coefficients(sh_degree)}, 3], got {colors.shape}"
        )


def _check_shapes(means, quats, scales, opacities, colors, viewmats, Ks, backgrounds) -> None:
    num, cameras = means.shape[0], viewmats.shape[0] if viewmats.ndim else 0
    expected = {
        "means": (means, (num, 3)),
        "quats": (quats, (num, 4)),
        "scales": (scales, (num, 3)),
        "opacities": (opacities, (num,)),
        "colors": (colors, (num, *colors.shape[1:])),
        "viewmats": (viewmats, (cameras, 4, 4)),
        "Ks": (Ks, (cameras, 3, 3)),
    }
    if backgrounds is not None:
        expected["backgrounds"] = (backgrounds, (cameras, colors.shape[-1]))
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {shape}: N is taken from means, C from viewmats"
            )


def _features(means, colors, projected: Projected, camera: Camera, *, sh_degree, render_mode) -> Float[Array, "N D"]:
    if sh_degree is not None:
        # What is culled may be NaN: it must not reach the gradient of the camera's position.
        visible = projected.radii_px[:, :1] > 0
        directions = jnp.where(visible, means - camera_center(camera.viewmat)[None], 0.0)
        colors = evaluate_sh(colors, safe_normalize(directions), degree=sh_degree)
    depths = projected.depths[:, None]
    if render_mode == "RGB":
        return colors
    return depths if render_mode in ("D", "ED") else jnp.concatenate([colors, depths], axis=-1)


def _compose(colors, alphas, backgrounds, render_mode):
    """Background behind the colour channels; expected depth by division."""
    depth = colors[..., -1:]
    if render_mode in ("ED", "RGB+ED"):
        depth = depth / jnp.maximum(alphas, 1e-10)
    if render_mode in ("D", "ED"):
        return depth
    rgb = colors if render_mode == "RGB" else colors[..., :-1]
    if backgrounds is not None:
        rgb = rgb + (1.0 - alphas) * backgrounds[:, None, None, :]
    return rgb if render_mode == "RGB" else jnp.concatenate([rgb, depth], axis=-1)
