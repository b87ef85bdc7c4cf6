"""`rasterization`: 3D Gaussians seen by C cameras, with gsplat's names and meaning (gsplat 1.5.3, `gsplat.rendering`)."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.geometry import camera_center, project
from bags_jax.numerics import safe_normalize
from bags_jax.ops.backends import choose
from bags_jax.ops.rasterize import batches_cameras, measure_buffer, rasterize
from bags_jax.ops.rasterize.tiles import default_tile_size, grid_size
from bags_jax.platforms import follows_arrays
from bags_jax.spherical_harmonics import evaluate_sh
from bags_jax.splatting_checks import check_arrays, check_modes, check_static, check_unsupported, explain_derivatives
from bags_jax.structs import Camera, Projected, RasterOutput


@follows_arrays
def rasterization(
    means: Float[Array, "*B N 3"],
    quats: Float[Array, "*B N 4"] | None,
    scales: Float[Array, "*B N 3"] | None,
    opacities: Float[Array, "*B N"],
    colors: Float[Array, "*B N D"] | Float[Array, "*B _C N D"] | Float[Array, "*B N L 3"] | Float[Array, "*B _C N L 3"],
    viewmats: Float[Array, "*B C 4 4"],
    Ks: Float[Array, "*B C 3 3"],
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    tile_size: int | None = None,
    backgrounds: Float[Array, "*B C D"] | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
    covars: Float[Array, "*B N 3 3"] | None = None,
    probe_px: Float[Array, "*B C N 2"] | None = None,
    max_intersections: int | None = None,
    backend: str = "auto",
    deterministic: bool = False,
    **unsupported: Any,
) -> tuple[Float[Array, "*B C H W E"], Float[Array, "*B C H W 1"], dict[str, Any]]:
    """Renders N Gaussians with C cameras, in float32; a pure function, differentiable in every array.

    Leading axes *B are a batch of scenes, each with its own cameras. Gaussians with a NaN or an infinity are culled; with
    one in the colours of a single camera, for that camera only. docs/splatting_api.md compares the arguments with gsplat.

    Args:
      means, quats, scales, opacities: world frame; quaternions wxyz of any norm, scales as standard deviations in scene
        units, opacities in [0, 1].
      colors: D channels, or with sh_degree at least (sh_degree + 1)^2 SH coefficients; an axis C before N: per camera.
      viewmats: cam_from_world, OpenCV axes (+x right, +y down, +z forward).
      Ks: intrinsics in px, pixel centres at +0.5.
      width, height: image size, px.
      near_plane, far_plane: depth range, scene units.
      radius_clip: Gaussians whose radii (`meta["radii"]`) are both at most this are culled, px.
      eps2d: variance added to the screen covariance, px^2.
      sh_degree: 0 to 3, or None if colors are colours.
      tile_size: side of a tile, px; changes speed and rounding only. None: the default of the backend.
      backgrounds: colour behind the Gaussians, weighted by 1 - alpha; never added to depth.
      render_mode: RGB, D (sum of weight times camera z), ED (D / alpha), or colour with one of them as last channel.
      rasterize_mode: "antialiased" multiplies the opacity by sqrt(det before / det after) of adding eps2d.
      camera_model: "pinhole", or "ortho" (fx, fy in px per scene unit).
      covars: covariances (upper triangle), world frame, scene units^2, in place of quats and scales, then None or unused.
      probe_px: zeros to add to means2d; their gradient is the gradient of means2d, which density control needs.
      max_intersections: buffer size for intersections of tiles and Gaussians, per image. None: they are counted; under
        jit the size is a guess.
      backend, deterministic: see `rasterize`.
      **unsupported: other arguments of gsplat; accepted with the value that switches them off.
    Returns:
      colors, alphas, and meta: means2d [*B,C,N,2] px, radii [*B,C,N,2] px (int, rounded up, 0 = culled), depths [*B,C,N],
      conics [*B,C,N,3] 1/px^2, opacities [*B,C,N] (antialiased), num_intersections [*B,C], num_dropped [*B,C] (not 0: the
      buffer was too small and the image is wrong), and the numbers width, height, tile_size, tile_width, tile_height
      (columns and rows of tiles), n_cameras, n_batches.
    Raises:
      ValueError: shapes that do not fit, an unknown mode, traced sizes, an argument of gsplat without an equivalent here.
      TypeError: an unknown argument, or forward-mode differentiation.
    Differentiable once, in reverse mode. Over several devices: within jax.pmap, or jax.shard_map with check_vma=False.
    """
    check_unsupported(unsupported)
    arrays = _Arrays(means, quats, scales, covars, opacities, colors, viewmats, Ks, backgrounds, probe_px)
    numbers = width, height, near_plane, far_plane, radius_clip, eps2d, sh_degree, tile_size, max_intersections
    settings = _Settings(*numbers, render_mode, rasterize_mode, camera_model, backend, deterministic)
    with explain_derivatives():
        return _rasterize_batch(arrays, settings)


class _Arrays(NamedTuple):
    """The array arguments; None where an optional one is missing."""

    means: Float[Array, "*B N 3"]
    quats: Float[Array, "*B N 4"] | None
    scales: Float[Array, "*B N 3"] | None
    covars: Float[Array, "*B N 3 3"] | None
    opacities: Float[Array, "*B N"]
    colors: Array
    viewmats: Float[Array, "*B C 4 4"]
    Ks: Float[Array, "*B C 3 3"]
    backgrounds: Float[Array, "*B C D"] | None
    probe_px: Float[Array, "*B C N 2"] | None


class _Settings(NamedTuple):
    """The static arguments; hashable, so that jit compiles one program for each."""

    width: int
    height: int
    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    sh_degree: int | None
    tile_size: int | None
    max_intersections: int | None
    render_mode: str
    rasterize_mode: str
    camera_model: str
    backend: str
    deterministic: bool


class _Gaussians(NamedTuple):
    """N Gaussians of one scene, or of a batch with a leading axis B."""

    means: Float[Array, "*B N 3"]
    quats: Float[Array, "*B N 4"] | None
    scales: Float[Array, "*B N 3"] | None
    covars: Float[Array, "*B N 3 3"] | None
    opacities: Any  # [*B, N]; None: in _Views
    colors: Any  # [*B, N, D] or [*B, N, L, 3]; None: in _Views


class _Views(NamedTuple):
    """C cameras, and what differs between them."""

    camera: Camera
    opacities: Any  # [*B, C, N]; None: in _Gaussians
    colors: Any  # [*B, C, N, D] or [*B, C, N, L, 3]; None: in _Gaussians
    probe_px: Float[Array, "*B C N 2"] | None


def _rasterize_batch(arrays: _Arrays, settings: _Settings):
    """`rasterization`, for arguments that still need checks and defaults."""
    check_static(settings._asdict())
    check_modes(settings.render_mode, settings.rasterize_mode, settings.camera_model)
    check_arrays(arrays._asdict(), settings.sh_degree)
    backend = choose("rasterize", settings.backend)  # outside jit, whose cache must not depend on the meaning of "auto"
    tile_size = default_tile_size(backend) if settings.tile_size is None else settings.tile_size
    settings = settings._replace(backend=backend, tile_size=tile_size)
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    batch, num = arrays.means.shape[:-2], arrays.means.shape[-2]
    gaussians, views = _separate(arrays, settings)
    if batch:
        gaussians, views = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) :]), (gaussians, views))
    if settings.max_intersections is None and num:
        settings = settings._replace(max_intersections=_measure_buffer(gaussians, views, settings))
    results = _render(gaussians, views, settings)
    if batch:
        results = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results)
    projected, image = results
    alphas = image.alphas[..., None]
    return _compose(image.colors, alphas, arrays.backgrounds, settings), alphas, _meta(projected, image, settings)


def _separate(arrays: _Arrays, settings: _Settings) -> tuple[_Gaussians, _Views]:
    """Separates arrays that all cameras share from arrays per camera, and hides Gaussians whose colours are not finite."""
    num_axes = 1 if settings.sh_degree is None else 2
    per_camera = arrays.colors.ndim - num_axes == arrays.means.ndim
    finite = jnp.isfinite(arrays.colors).all(axis=tuple(range(-num_axes, 0)))
    colors = jnp.where(finite.reshape(*finite.shape, *(1,) * num_axes), arrays.colors, 0.0)
    opacities = jnp.where(finite, arrays.opacities[..., None, :] if per_camera else arrays.opacities, 0.0)
    shape = (None, None, arrays.covars) if arrays.covars is not None else (arrays.quats, arrays.scales, None)
    camera = Camera(arrays.viewmats, arrays.Ks)
    if per_camera:
        return _Gaussians(arrays.means, *shape, None, None), _Views(camera, opacities, colors, arrays.probe_px)
    return _Gaussians(arrays.means, *shape, opacities, colors), _Views(camera, None, None, arrays.probe_px)


def _project_view(gaussians: _Gaussians, view: _Views, settings: _Settings) -> Projected:
    """Projects the Gaussians of one scene to one camera."""
    opacities = gaussians.opacities if view.opacities is None else view.opacities
    projected = project(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        opacities,
        view.camera,
        width=settings.width,
        height=settings.height,
        near_plane=settings.near_plane,
        far_plane=settings.far_plane,
        radius_clip=settings.radius_clip,
        eps_2d=settings.eps2d,
        antialiased=settings.rasterize_mode == "antialiased",
        camera_model=settings.camera_model,
        covars=gaussians.covars,
    )
    if view.probe_px is None:
        return projected
    return dataclasses.replace(projected, means_px=projected.means_px + view.probe_px)


def _render_view(gaussians: _Gaussians, view: _Views, settings: _Settings) -> tuple[Projected, RasterOutput]:
    """Renders one scene with one camera."""
    projected = _project_view(gaussians, view, settings)
    colors = gaussians.colors if view.colors is None else view.colors
    features = _features(gaussians.means, colors, projected, view.camera, settings)
    image = rasterize(
        projected,
        features,
        width=settings.width,
        height=settings.height,
        tile_size=settings.tile_size,
        max_intersections=settings.max_intersections,
        backend=settings.backend,
        deterministic=settings.deterministic,
    )
    return projected, image


@functools.partial(jax.jit, static_argnums=2)
def _render(gaussians: _Gaussians, views: _Views, settings: _Settings):
    """Renders all cameras; of each scene of a batch, if means have a leading axis."""

    def over(function, xs):
        # lax.map: under vmap every loop would run as long as the longest of all cameras.
        return jax.vmap(function)(xs) if batches_cameras(settings.backend) else jax.lax.map(function, xs)

    def render_scene(gaussians, views):
        return over(lambda view: _render_view(gaussians, view, settings), views)

    if gaussians.means.ndim == 3:
        return over(lambda scene: render_scene(*scene), (gaussians, views))
    return render_scene(gaussians, views)


def _measure_buffer(gaussians: _Gaussians, views: _Views, settings: _Settings) -> int:
    """Returns a buffer size that holds the intersections of any of the images."""
    gaussians, views = jax.lax.stop_gradient((gaussians, views))
    if gaussians.means.ndim == 3:
        scenes = [jax.tree.map(lambda x, i=i: x[i], (gaussians, views)) for i in range(len(gaussians.means))]
        return max((_measure_buffer(one, its_views, settings) for one, its_views in scenes), default=1024)
    each = [jax.tree.map(lambda x, i=i: x[i], views) for i in range(views.camera.K.shape[0])]
    size = {"width": settings.width, "height": settings.height, "tile_size": settings.tile_size}
    images = (_project_jit(gaussians, view, settings) for view in each)
    return max((measure_buffer(projected, **size, backend=settings.backend) for projected in images), default=1024)


_project_jit = jax.jit(_project_view, static_argnums=2)


def _features(means, colors, projected: Projected, camera: Camera, settings: _Settings) -> Float[Array, "N D"]:
    """Returns the channels to blend: colour towards the camera, depth, or both."""
    if settings.sh_degree is not None:
        # Culled means may be NaN, which must not reach the gradient of the camera's position.
        visible = projected.radii_px[:, :1] > 0
        directions = jnp.where(visible, means - camera_center(camera.viewmat)[None], 0.0)
        colors = evaluate_sh(colors, safe_normalize(directions), degree=settings.sh_degree)
    depths = projected.depths[:, None]
    if settings.render_mode == "RGB":
        return colors
    return depths if settings.render_mode in ("D", "ED") else jnp.concatenate([colors, depths], axis=-1)


def _compose(colors, alphas, backgrounds, settings: _Settings):
    """Adds the background to the colour channels, and divides expected depth by alpha."""
    render_mode, depth = settings.render_mode, colors[..., -1:]
    if render_mode in ("ED", "RGB+ED"):
        depth = depth / jnp.maximum(alphas, 1e-10)
    if render_mode in ("D", "ED"):
        return depth
    rgb = colors if render_mode == "RGB" else colors[..., :-1]
    if backgrounds is not None:
        rgb = rgb + (1.0 - alphas) * backgrounds[..., None, None, :]
    return rgb if render_mode == "RGB" else jnp.concatenate([rgb, depth], axis=-1)


def _meta(projected: Projected, image: RasterOutput, settings: _Settings) -> dict[str, Any]:
    assert settings.tile_size is not None  # set in _rasterize_batch
    columns, rows = grid_size(settings.width, settings.height, settings.tile_size)
    *batch, cameras = image.num_dropped.shape
    return {
        "means2d": projected.means_px,
        "radii": jnp.ceil(projected.radii_px).astype(jnp.int32),
        "depths": projected.depths,
        "conics": projected.conics,
        "opacities": projected.opacities,
        "num_intersections": image.num_intersections,
        "num_dropped": image.num_dropped,
        "width": settings.width,
        "height": settings.height,
        "tile_size": settings.tile_size,
        "tile_width": columns,
        "tile_height": rows,
        "n_cameras": cameras,
        "n_batches": math.prod(batch),
    }
