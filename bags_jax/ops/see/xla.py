"""Activates, filters, projects and colours Gaussians in plain JAX."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bags_jax.geometry import apply_filter_3d, camera_center, project
from bags_jax.numerics import EXACT, safe_normalize, safe_sqrt
from bags_jax.spherical_harmonics import SH_C0, degree_of, sh_basis
from bags_jax.structs import Camera, Canvas, Gaussians, Projected, Seen


def activate(gaussians: Gaussians, alive: Bool[Array, "N"], filter_3d: Float[Array, "N"]):
    """Scales and opacities after exp and sigmoid, the 3D filter, and opacity 0 for dead rows."""
    scales, opacities = jnp.exp(gaussians.log_scales), jax.nn.sigmoid(gaussians.logit_opacities)
    scales, opacities = apply_filter_3d(scales, opacities, filter_3d)
    return scales, jnp.where(alive, opacities, 0.0)


def project_gaussians(
    gaussians: Gaussians, alive: Bool[Array, "N"], filter_3d: Float[Array, "N"], camera: Camera, canvas: Canvas
) -> Projected:
    """Projects living Gaussians with both filters of Mip-Splatting."""
    scales, opacities = activate(gaussians, alive, filter_3d)
    return project(
        gaussians.means,
        gaussians.quats,
        scales,
        opacities,
        camera,
        width=canvas.width,
        height=canvas.height,
        near_plane=canvas.near_plane,
        eps_2d=canvas.eps_2d,
        antialiased=True,
    )


def colors_towards(gaussians: Gaussians, camera: Camera, sh_degree: Int[Array, ""] | int) -> Float[Array, "N 3"]:
    """RGB of each Gaussian seen from a camera; sh_degree may be traced: coefficients above it count as 0.

    The coefficients, 45 numbers a Gaussian, are read once: joining sh_dc and sh_rest, or zeroing the rest instead of the
    harmonics, would be passes over memory of their own, and passes of their gradients.
    """
    num_rest = gaussians.sh_rest.shape[1]
    degree = degree_of(1 + num_rest)
    degrees = jnp.floor(jnp.sqrt(jnp.arange(1, 1 + num_rest) + 1e-3))
    directions = safe_normalize(gaussians.means - camera_center(camera.viewmat)[None])
    basis = jnp.where(degrees <= sh_degree, sh_basis(directions, degree=degree)[:, 1:], 0.0)
    rest = jnp.einsum("nl,nlc->nc", basis, gaussians.sh_rest, precision=EXACT)
    return jnp.maximum(SH_C0 * gaussians.sh_dc[:, 0] + rest + 0.5, 0.0)


def distances_from(gaussians: Gaussians, camera: Camera) -> Float[Array, "N"]:
    """Distance of each mean from the camera, scene units: depth along the ray, as the authors of BAGS have it."""
    offsets = gaussians.means - camera_center(camera.viewmat)[None]
    return safe_sqrt(jnp.sum(offsets * offsets, axis=-1))


def see(
    gaussians: Gaussians,
    alive: Bool[Array, "N"],
    filter_3d: Float[Array, "N"],
    camera: Camera,
    canvas: Canvas,
    sh_degree: Int[Array, ""] | int,
) -> Seen:
    """See ops/see/__init__.py."""
    projected = project_gaussians(gaussians, alive, filter_3d, camera, canvas)
    depths = distances_from(gaussians, camera) if canvas.ray_depth else projected.depths
    colors = colors_towards(gaussians, camera, sh_degree)
    constant = {name: jax.lax.stop_gradient(getattr(projected, name)) for name in ("covs_px", "depths", "radii_px")}
    features = jnp.concatenate([colors, depths[:, None]], axis=-1)
    return Seen(dataclasses.replace(projected, **constant), features)
