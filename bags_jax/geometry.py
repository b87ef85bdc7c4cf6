"""Geometry of Gaussians and cameras: rotations, EWA projection, the 3D smoothing filter."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bags_jax.numerics import EXACT, safe_div, safe_normalize, safe_sqrt
from bags_jax.ops.limits import MIN_ALPHA
from bags_jax.platforms import current_platform
from bags_jax.structs import Camera, Projected

LARGEST = 1e18  # of any number of a Gaussian: the square of a larger one overflows
LARGEST_PX = 1e9  # of a standard deviation on the screen: the fourth power of a larger one overflows
IDENTITY = (1.0, 0.0, 1.0)  # covariance of what is culled: xx, xy, yy
FOV_MARGIN = 0.3  # the projection is linearised at most this part of half the field of view beyond the image


# The components of N vectors, each an array of its own. XLA's CPU code for [N, 3] and [N, 3, 3] is scalar, for these it is vectorised;
# on a GPU `project` and its gradient become six kernels in all.
Numbers = list[Float[Array, "N"]]


def _columns(x: Float[Array, "N D"]) -> Numbers:
    """By a split: its gradient puts columns side by side, that of indexing adds up an array for each."""
    return [column[:, 0] for column in jax.lax.split(x, [1] * x.shape[1], axis=1)]


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a, b):
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _rotation_rows(w, x, y, z):
    """Rotation matrix of a unit quaternion."""
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def rotation_from_quat(quats: Float[Array, "*S 4"]) -> Float[Array, "*S 3 3"]:
    """Rotation matrices of quaternions wxyz of any norm; the zero quaternion gives the identity."""
    rotation = _rotation_rows(*jnp.moveaxis(safe_normalize(quats), -1, 0))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rotation], axis=-2)


def camera_center(viewmat: Float[Array, "4 4"]) -> Float[Array, "3"]:
    """World position of a camera, from cam_from_world."""
    return -jnp.matmul(viewmat[:3, :3].T, viewmat[:3, 3], precision=EXACT)


def _own_axes(quat: Numbers, scale: Numbers) -> list[Numbers]:
    """The axes of each Gaussian in the world frame, as long as its scales: the columns of R S."""
    norm = safe_sqrt(quat[0] * quat[0] + _dot(quat[1:], quat[1:]))
    turns = zip(*_rotation_rows(*(safe_div(q, norm) for q in quat)), strict=True)
    return [[x * length for x in axis] for axis, length in zip(turns, scale, strict=True)]


def _clip_to_view(slope, focal, center, size: int):
    """x / z or y / z, moved to where J is taken: at most FOV_MARGIN of half the image beyond its border; the rest in px."""
    margin = FOV_MARGIN * 0.5 * size
    return jnp.clip(slope, (-center - margin) / focal, (size - center + margin) / focal)


def _spread(camera: Camera, num: int) -> list[list[Float[Array, "*S"]]]:
    """The rows of cam_from_world, then fx, skew, cx, fy, cy: each number once, or as often as there are Gaussians.

    The gradient of them all is one sum over an array: on a GPU each sum is a launch or two. A CPU is faster with a sum for each.
    """
    numbers = jnp.concatenate([camera.viewmat[:3].reshape(-1), camera.K[0], camera.K[1, 1:]])
    if current_platform() == "cpu":
        each = list(numbers)
    else:
        repeated = jnp.broadcast_to(numbers[:, None], (numbers.shape[0], num))
        each = [row[0] for row in jax.lax.split(repeated, [1] * numbers.shape[0])]
    return [each[:4], each[4:8], each[8:12], each[12:]]


def _screen_factor(axes: list[Numbers], turn, lens, x_lin, y_lin, z) -> tuple[Numbers, Numbers]:
    """The two rows of M = J W R S: what each axis becomes on the screen, px; lens is fx, fy and skew, px."""
    (fx, fy, skew), row_x, row_y = lens, [], []
    for axis in axes:
        right, down, ahead = (_dot(turn[k], axis) for k in range(3))
        slope_x, slope_y = right - x_lin * ahead, down - y_lin * ahead
        row_x.append((fx * slope_x + skew * slope_y) / z)
        row_y.append(fy * slope_y / z)
    return row_x, row_y


def _screen_covariance(row_x: Numbers, row_y: Numbers, eps_2d: float):
    """xx, xy, yy of M M^T + eps I and its determinant, with the compensation of the opacity for eps; M by its two rows.

    det(M M^T) is the squared cross product of the rows of M (Cauchy-Binet): unlike xx yy - xy^2 it never cancels, so
    that needles and giants keep a positive determinant in float32.
    """
    xx, xy, yy = _dot(row_x, row_x), _dot(row_x, row_y), _dot(row_y, row_y)
    normal = _cross(row_x, row_y)
    det_before = _dot(normal, normal)
    det = det_before + eps_2d * (xx + yy) + eps_2d * eps_2d
    return [xx + eps_2d, xy, yy + eps_2d], det, safe_sqrt(safe_div(det_before, det))


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
    numbers = _materialize([*_columns(means), *_columns(quats), *_columns(scales), opacities])
    finite = _all_below(LARGEST, numbers)
    numbers = [jnp.where(finite, x, 0.0) for x in numbers]
    mean, quat, scale, opacity = numbers[:3], numbers[3:7], numbers[7:10], numbers[10]
    *rows, (fx, skew, cx, fy, cy) = _spread(camera, means.shape[0])
    turn, shift = [row[:3] for row in rows], [row[3] for row in rows]
    x_cam, y_cam, depth = (_dot(turn[k], mean) + shift[k] for k in range(3))
    in_range = finite & (depth > near_plane) & (depth < far_plane)
    z = jnp.where(in_range, depth, 1.0)
    x, y = x_cam / z, y_cam / z
    x_lin, y_lin = _clip_to_view(x, fx, cx, width), _clip_to_view(y, fy, cy, height)
    row_x, row_y = _screen_factor(_own_axes(quat, scale), turn, (fx, fy, skew), x_lin, y_lin, z)
    drawable = in_range & _all_below(LARGEST_PX, row_x + row_y)
    # Before their fourth power overflows into the gradients.
    row_x, row_y = ([jnp.where(drawable, v, 0.0) for v in row] for row in (row_x, row_y))
    cov, det, compensation = _screen_covariance(row_x, row_y, eps_2d)

    mean_px = [fx * x + skew * y + cx, fy * y + cy]
    opacity = opacity * compensation if antialiased else opacity
    inverse = 1.0 / jnp.where(det > 0, det, 1.0)
    conic = [cov[2] * inverse, -cov[1] * inverse, cov[0] * inverse]
    radius = _radii(mean_px, cov, opacity, drawable & (det > 0), width=width, height=height)
    return _projected([*mean_px, *cov, *conic, depth, opacity], radius)


def _projected(numbers: Numbers, radius: Numbers) -> Projected:
    """Mean (2), covariance (3), conic (3), depth and opacity, in this order, and radius (2): joined, and hidden where the radius is 0."""
    hidden = [0.0, 0.0, *IDENTITY, *IDENTITY, 0.0, 0.0]
    numbers = [jnp.where(radius[0] > 0, x, other) for x, other in zip(numbers, hidden, strict=True)]
    numbers = _materialize(numbers + radius)
    join = functools.partial(jnp.stack, axis=-1)
    return Projected(
        means_px=join(numbers[:2]),
        covs_px=join(numbers[2:5]),
        conics=join(numbers[5:8]),
        depths=numbers[8],
        opacities=numbers[9],
        radii_px=join(numbers[10:]),
    )


def _materialize(numbers: Numbers) -> Numbers:
    """The same numbers, on a CPU computed once: XLA's compiler for it else computes all that leads to them anew for each use."""
    return list(jax.lax.optimization_barrier(numbers)) if current_platform() == "cpu" else numbers


def _all_below(limit: float, numbers: Numbers) -> Bool[Array, "N"]:
    """Where all are finite and small enough: in a gradient, 0 * NaN and 0 * infinity are NaN."""
    return functools.reduce(jnp.logical_and, [jnp.abs(x) < limit for x in numbers])


def _radii(mean_px: Numbers, cov: Numbers, opacity, valid: Bool[Array, "N"], *, width: int, height: int) -> Numbers:
    """Half extents of the region where alpha >= 1/255, 0 for what the image cannot show or what is not finite."""
    mean_px, cov, opacity = jax.lax.stop_gradient((mean_px, cov, opacity))
    log_ratio = jnp.log(jnp.maximum(opacity / MIN_ALPHA, 1e-6))
    deviations = jnp.sqrt(jnp.maximum(2.0 * log_ratio, 0.0))
    radii = [deviations * jnp.sqrt(jnp.maximum(variance, 0.0)) for variance in cov[::2]]
    # A radius of 0 would read as culled: a Gaussian that touches the threshold at its centre alone is nowhere visible.
    seen = valid & _all_below(LARGEST, [*mean_px, *cov, opacity]) & (log_ratio > 0)
    for x, radius, side in zip(mean_px, radii, (width, height), strict=True):
        seen &= (x + radius > 0) & (x - radius < side)
    return [jnp.where(seen, radius, 0.0) for radius in radii]


def smoothing_filter(
    means: Float[Array, "N 3"],
    alive: Bool[Array, "N"],
    cameras: Camera,
    sizes: Int[Array, "V 2"],
    *,
    near: Float[Array, ""] | float = 0.2,
    margin: float = 0.15,
) -> Float[Array, "N"]:
    """Standard deviation of Mip-Splatting's 3D filter: sqrt(0.2) * min over cameras of z / fx (Yu et al. 2024, eq. 7).

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
