"""Geometry of Gaussians and cameras: rotations, EWA projection, the 3D smoothing filter."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bags_jax.limits import MIN_ALPHA
from bags_jax.numerics import safe_div, safe_normalize, safe_sqrt
from bags_jax.structs import Camera, Projected

LARGEST = 1e18  # of any number of a Gaussian: the square of a larger one overflows
LARGEST_PX = 1e9  # of a standard deviation on the screen: the fourth power of a larger one overflows
EXACT = jax.lax.Precision.HIGHEST  # of matrix products: a GPU's default is TF32, with 10 bits, and a TPU's bf16
FOV_MARGIN = 0.3  # the projection is linearised at most this part of half the field of view beyond the image


def rotation_from_quat(quats: Float[Array, "*S 4"]) -> Float[Array, "*S 3 3"]:
    """Rotation matrices of quaternions wxyz of any norm; the zero quaternion gives the identity."""
    w, x, y, z = jnp.moveaxis(safe_normalize(quats), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def camera_center(viewmat: Float[Array, "4 4"]) -> Float[Array, "3"]:
    """World position of a camera, from cam_from_world."""
    return -jnp.matmul(viewmat[:3, :3].T, viewmat[:3, 3], precision=EXACT)


def _screen_covariance(factor: Float[Array, "N 2 3"], eps_2d: float):
    """M M^T + eps I and its determinant, with the compensation of the opacity for eps.

    det(M M^T) is the squared cross product of the rows of M (Cauchy-Binet): unlike xx yy - xy^2 it never cancels, so
    that needles and giants keep a positive determinant in float32.
    """
    row_x, row_y = factor[:, 0], factor[:, 1]
    xx, xy, yy = jnp.sum(row_x * row_x, -1), jnp.sum(row_x * row_y, -1), jnp.sum(row_y * row_y, -1)
    det_before = jnp.sum(jnp.cross(row_x, row_y) ** 2, -1)
    det = det_before + eps_2d * (xx + yy) + eps_2d * eps_2d
    compensation = safe_sqrt(safe_div(det_before, det))
    return jnp.stack([xx + eps_2d, xy, yy + eps_2d], -1), det, compensation


def project(
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"],
    scales: Float[Array, "N 3"],
    opacities: Float[Array, "N"],
    camera: Camera,
    *,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps_2d: float = 0.3,
    antialiased: bool = False,
) -> Projected:
    """Projects 3D Gaussians to screen-space conics (EWA splatting).

    Sigma' = J W Sigma W^T J^T + eps I  (Kerbl et al. 2023, eq. 5). With `antialiased` the opacity is multiplied by
    sqrt(det before / det after) of adding eps (Mip-Splatting, Yu et al. 2024, eq. 8). J is taken at the mean, moved to
    at most 0.3 of half the field of view beyond the image border, as in gsplat.

    Args:
      means, quats, scales, opacities: world frame; quaternions wxyz of any norm, scales as standard deviations in
        scene units, opacities in [0, 1] (after activation).
      camera: one camera, OpenCV axes.
      width, height: image size, px.
      near_plane, far_plane: Gaussians with camera z outside are culled, scene units.
      eps_2d: variance of the 2D filter, px^2.
    Returns:
      Projected; radius 0 marks what is culled: outside the depth range, nowhere above alpha 1/255, off screen, not
      finite, or too large for float32 (numbers over 1e18, standard deviations over 1e9 px).
    Raises:
      ValueError: eps_2d < 0.
    Differentiable in all arrays, the camera's included; gradient 0 where culled.
    """
    if eps_2d < 0:
        raise ValueError(f"eps_2d is {eps_2d} px^2, expected a variance >= 0: pass 0 to switch the 2D filter off")
    finite = _finite_rows(means, quats, scales, opacities)
    means, quats, scales = (jnp.where(finite[:, None], x, 0.0) for x in (means, quats, scales))
    opacities = jnp.where(finite, opacities, 0.0)
    rotation, translation = camera.viewmat[:3, :3], camera.viewmat[:3, 3]
    # Products written as sums: a [N,3] x [3,3] matmul is slower and less exact, and on a GPU not fused with the rest.
    columns = [means[:, k : k + 1] * rotation[None, :, k] for k in range(3)]
    means_cam = columns[0] + columns[1] + columns[2] + translation[None]
    depths = means_cam[:, 2]
    in_range = finite & (depths > near_plane) & (depths < far_plane)
    z = jnp.where(in_range, depths, 1.0)
    x, y = means_cam[:, 0] / z, means_cam[:, 1] / z
    fx, fy, skew, cx, cy = (camera.K[0, 0], camera.K[1, 1], camera.K[0, 1], camera.K[0, 2], camera.K[1, 2])

    margin_x, margin_y = FOV_MARGIN * 0.5 * width / fx, FOV_MARGIN * 0.5 * height / fy
    x_lin = jnp.clip(x, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    y_lin = jnp.clip(y, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    axes_world = rotation_from_quat(quats) * scales[:, None, :]
    axes_cam = jnp.sum(rotation[None, :, :, None] * axes_world[:, None], axis=2)  # as above
    slope_x = axes_cam[:, 0] - x_lin[:, None] * axes_cam[:, 2]
    slope_y = axes_cam[:, 1] - y_lin[:, None] * axes_cam[:, 2]
    factor = jnp.stack([fx * slope_x + skew * slope_y, fy * slope_y], axis=1) / z[:, None, None]
    drawable = in_range & (jnp.abs(factor) < LARGEST_PX).all((1, 2))
    factor = jnp.where(drawable[:, None, None], factor, 0.0)  # before its fourth power overflows into the gradients
    covs, det, compensation = _screen_covariance(factor, eps_2d)

    means_px = jnp.stack([fx * x + skew * y + cx, fy * y + cy], axis=-1)
    opacities = opacities * compensation if antialiased else opacities
    conics = jnp.stack([covs[:, 2], -covs[:, 1], covs[:, 0]], -1) / jnp.where(det > 0, det, 1.0)[:, None]
    radii = _radii(means_px, covs, opacities, drawable & (det > 0), width=width, height=height)
    visible = radii[:, 0] > 0
    return Projected(
        means_px=jnp.where(visible[:, None], means_px, 0.0),
        covs_px=jnp.where(visible[:, None], covs, jnp.array([[1.0, 0.0, 1.0]])),
        conics=jnp.where(visible[:, None], conics, jnp.array([[1.0, 0.0, 1.0]])),
        depths=jnp.where(visible, depths, 0.0),
        opacities=jnp.where(visible, opacities, 0.0),
        radii_px=radii,
    )


def _finite_rows(*arrays) -> Bool[Array, "N"]:
    """Rows without NaN, infinity or what overflows when squared: in a gradient, 0 * NaN and 0 * infinity are NaN."""
    return jnp.stack([(jnp.abs(x) < LARGEST).all(tuple(range(1, x.ndim))) for x in arrays]).all(0)


def _radii(means_px, covs, opacities, valid: Bool[Array, "N"], *, width: int, height: int) -> Float[Array, "N 2"]:
    """Half extents of the region where alpha >= 1/255, 0 for what the image cannot show or what is not finite."""
    means_px, covs, opacities = jax.lax.stop_gradient((means_px, covs, opacities))
    log_ratio = jnp.log(jnp.maximum(opacities / MIN_ALPHA, 1e-6))
    diagonal = covs[:, ::2]
    radii = jnp.sqrt(jnp.maximum(2.0 * log_ratio, 0.0))[:, None] * jnp.sqrt(jnp.maximum(diagonal, 0.0))
    finite = _finite_rows(means_px, covs, opacities)
    size = jnp.array([[width, height]], means_px.dtype)
    on_screen = ((means_px + radii > 0) & (means_px - radii < size)).all(-1)
    # A radius of 0 would read as culled: a Gaussian that touches the threshold at its centre alone is nowhere visible.
    return jnp.where((valid & finite & on_screen & (log_ratio > 0))[:, None], radii, 0.0)


def smoothing_filter(
    means: Float[Array, "N 3"],
    alive: Bool[Array, "N"],
    cameras: Camera,
    sizes: Int[Array, "V 2"],
    *,
    near: float = 0.2,
    margin: float = 0.15,
) -> Float[Array, "N"]:
    """Standard deviation of Mip-Splatting's 3D filter: sqrt(0.2) * min over cameras of z / focal (Yu et al. 2024, eq. 7).

    Args:
      means: world frame, scene units.
      alive: rows that count; the others get the largest value too.
      cameras: the V training cameras at the scale that is being trained.
      sizes: height and width of their images, px.
      near: a camera sees points farther than this, scene units.
      margin: and inside its image enlarged by this part of it on each side.
    Returns:
      scene units. Points that no camera sees take the largest value of those that some camera sees.
    """

    def nearest(best, view):
        camera, size = view
        in_cam = jnp.matmul(means, camera.viewmat[:3, :3].T, precision=EXACT) + camera.viewmat[None, :3, 3]
        z = jnp.maximum(in_cam[:, 2], near)
        uv = (in_cam[:, :2] / z[:, None]) * jnp.diagonal(camera.K)[None, :2] + camera.K[None, :2, 2]
        extent = size[None, ::-1].astype(means.dtype)
        inside = ((uv >= -margin * extent) & (uv <= (1 + margin) * extent)).all(-1) & (in_cam[:, 2] > near)
        return jnp.minimum(best, jnp.where(inside, z / camera.K[0, 0], jnp.inf)), None

    best, _ = jax.lax.scan(nearest, jnp.full(means.shape[0], jnp.inf), (cameras, sizes))
    seen = jnp.isfinite(best) & alive
    largest = jnp.max(jnp.where(seen, best, 0.0))
    return jnp.sqrt(0.2) * jnp.where(jnp.isfinite(best), best, largest)


def apply_filter_3d(
    scales: Float[Array, "N 3"], opacities: Float[Array, "N"], filter_3d: Float[Array, "N"]
) -> tuple[Float[Array, "N 3"], Float[Array, "N"]]:
    """Scales and opacities after convolution with the 3D filter, its integral kept (Yu et al. 2024, eq. 6 and 7)."""
    filtered = jnp.sqrt(scales**2 + filter_3d[:, None] ** 2)
    return filtered, opacities * jnp.prod(scales / filtered, axis=-1)
