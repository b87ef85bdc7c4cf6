"""Geometry of Gaussians and cameras: rotations, EWA projection, the 3D smoothing filter."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bags_jax.numerics import EXACT, safe_div, safe_normalize, safe_sqrt
from bags_jax.ops.limits import MIN_ALPHA
from bags_jax.platforms import current_platform
from bags_jax.structs import Camera, Projected

LARGEST = 1e18  # limit for each number of a Gaussian: its square must fit into float32
FAR_PLANE = 1e10  # default of `project`, scene units
LARGEST_PX = 1e9  # limit for standard deviations on the screen, px: their fourth power must fit into float32
SMALLEST_VARIANCE = 1e-30  # scene units^2; a covariance with a smaller trace counts as 0
IDENTITY = (1.0, 0.0, 1.0)  # covariance (xx, xy, yy) that culled Gaussians get
FOV_MARGIN = 0.3  # J is taken at most this fraction of half the field of view beyond the image border, as in gsplat
CAMERA_MODELS = ("pinhole", "ortho")


# Components of N vectors, one array each. XLA's CPU code is vectorised for them, and scalar for [N, 3] and [N, 3, 3]. On
# a GPU `project` and its gradient compile to six kernels in all.
Numbers = list[Float[Array, "N"]]


def _columns(x: Float[Array, "N D"]) -> Numbers:
    """Splits an array into its columns. The gradient of a split is one concatenation, that of D slices D additions."""
    return [column[:, 0] for column in jax.lax.split(x, [1] * x.shape[1], axis=1)]


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a, b):
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _rotation_rows(w, x, y, z):
    """Returns the rotation matrix of a unit quaternion."""
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def rotation_from_quat(quats: Float[Array, "*S 4"]) -> Float[Array, "*S 3 3"]:
    """Returns rotation matrices of quaternions wxyz of any norm. The zero quaternion gives the identity."""
    rotation = _rotation_rows(*jnp.moveaxis(safe_normalize(quats), -1, 0))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rotation], axis=-2)


def camera_center(viewmat: Float[Array, "4 4"]) -> Float[Array, "3"]:
    """Returns the position of a camera in the world frame, from cam_from_world."""
    return -jnp.matmul(viewmat[:3, :3].T, viewmat[:3, 3], precision=EXACT)


class _Shape(NamedTuple):
    """Covariance A G A^T of Gaussians in the world frame, scene units^2."""

    axes: list[Numbers]  # columns of A
    gram: list[Numbers] | None  # rows of the symmetric G; None: the identity


def _shape_from_quat(quat: Numbers, scale: Numbers) -> _Shape:
    """A = R S, G = I."""
    norm = safe_sqrt(quat[0] * quat[0] + _dot(quat[1:], quat[1:]))
    columns = zip(*_rotation_rows(*(safe_div(q, norm) for q in quat)), strict=True)
    return _Shape([[x * length for x in column] for column, length in zip(columns, scale, strict=True)], None)


def _shape_from_covariance(upper: Numbers) -> _Shape:
    """A = s I, G = Sigma / s^2 with s^2 = trace Sigma: the entries of G are at most 1, so float32 never overflows.

    A G A^T does not depend on s, so s needs no gradient.
    """
    xx, xy, xz, yy, yz, zz = upper
    trace = jax.lax.stop_gradient(xx + yy + zz)
    size = jnp.sqrt(jnp.where(trace > SMALLEST_VARIANCE, trace, 1.0))
    zero = jnp.zeros_like(size)
    gram = [[entry / (size * size) for entry in row] for row in ([xx, xy, xz], [xy, yy, yz], [xz, yz, zz])]
    return _Shape([[size, zero, zero], [zero, size, zero], [zero, zero, size]], gram)


def _is_covariance(upper: Numbers) -> Bool[Array, "N"]:
    """Checks necessary conditions of a covariance: diagonal >= 0, other entries at most the trace."""
    xx, xy, xz, yy, yz, zz = upper
    bounded = [jnp.abs(x) <= xx + yy + zz for x in (xy, xz, yz)]
    return functools.reduce(jnp.logical_and, [xx >= 0, yy >= 0, zz >= 0, *bounded])


class _CameraNumbers(NamedTuple):
    """The numbers of one camera, each a scalar or an array [N]."""

    rotation: list[list[Float[Array, "*S"]]]  # rows of world-to-camera
    translation: list[Float[Array, "*S"]]  # scene units
    intrinsics: list[Float[Array, "*S"]]  # fx, skew, cx, fy, cy; px


def _camera_numbers(camera: Camera, num: int) -> _CameraNumbers:
    """Returns scalars on a CPU, arrays of N equal numbers elsewhere.

    On a GPU the gradient of the arrays is one reduction; that of scalars is one or two kernel launches for each of the 17
    numbers. On a CPU scalars are faster.
    """
    numbers = jnp.concatenate([camera.viewmat[:3].reshape(-1), camera.K[0], camera.K[1, 1:]])
    if current_platform() == "cpu":
        each = list(numbers)
    else:
        repeated = jnp.broadcast_to(numbers[:, None], (numbers.shape[0], num))
        each = [row[0] for row in jax.lax.split(repeated, [1] * numbers.shape[0])]
    rows = [each[:4], each[4:8], each[8:12]]
    return _CameraNumbers([row[:3] for row in rows], [row[3] for row in rows], each[12:])


class _Pinhole(NamedTuple):
    """Perspective projection of the means, and its Jacobian J at the means moved to near the image."""

    slopes: Numbers  # x / z, y / z in the camera frame
    clipped: Numbers  # the slopes that J is taken at
    z: Float[Array, "N"]
    intrinsics: Numbers

    def project_vector(self, right, down, ahead):
        """Returns J v, px; v in the camera frame."""
        fx, skew, _, fy, _ = self.intrinsics
        slope_x, slope_y = right - self.clipped[0] * ahead, down - self.clipped[1] * ahead
        return (fx * slope_x + skew * slope_y) / self.z, fy * slope_y / self.z

    def means_px(self) -> Numbers:
        fx, skew, cx, fy, cy = self.intrinsics
        x, y = self.slopes
        return [fx * x + skew * y + cx, fy * y + cy]


class _Orthographic(NamedTuple):
    """Projection along z; the intrinsics fx, skew, fy are in px per scene unit."""

    x_cam: Float[Array, "N"]
    y_cam: Float[Array, "N"]
    intrinsics: Numbers

    def project_vector(self, right, down, ahead):
        """Returns J v, px; v in the camera frame."""
        fx, skew, _, fy, _ = self.intrinsics
        return fx * right + skew * down, fy * down

    def means_px(self) -> Numbers:
        fx, skew, cx, fy, cy = self.intrinsics
        return [fx * self.x_cam + skew * self.y_cam + cx, fy * self.y_cam + cy]


def _make_pinhole(x_cam, y_cam, z, intrinsics, *, width: int, height: int) -> _Pinhole:
    fx, _, cx, fy, cy = intrinsics
    x, y = x_cam / z, y_cam / z
    return _Pinhole([x, y], [_clip_slope(x, fx, cx, width), _clip_slope(y, fy, cy, height)], z, intrinsics)


def _clip_slope(slope, focal, center, size: int):
    """Clips x / z or y / z to at most FOV_MARGIN of half the image beyond its border."""
    margin = FOV_MARGIN * 0.5 * size
    return jnp.clip(slope, (-center - margin) / focal, (size - center + margin) / focal)


def _project_axes(axes: list[Numbers], rotation, lens: _Pinhole | _Orthographic) -> tuple[Numbers, Numbers]:
    """Returns the two rows of M = J W A, px."""
    row_x, row_y = [], []
    for axis in axes:
        x, y = lens.project_vector(*(_dot(row, axis) for row in rotation))
        row_x.append(x)
        row_y.append(y)
    return row_x, row_y


def _screen_covariance(row_x: Numbers, row_y: Numbers, gram: list[Numbers] | None, eps_2d: float):
    """Returns xx, xy, yy of M G M^T + eps I, its determinant, and the opacity factor sqrt(det before / det after eps).

    det(M G M^T) is the dot product of two cross products (Cauchy-Binet). Unlike xx yy - xy^2 it does not cancel if G = I:
    needles and giants keep a positive determinant in float32.
    """
    to_x, to_y = (row_x, row_y) if gram is None else ([_dot(g, row) for g in gram] for row in (row_x, row_y))
    xx, xy, yy = _dot(row_x, to_x), _dot(row_x, to_y), _dot(row_y, to_y)
    normal = _cross(row_x, row_y)
    det_before = _dot(normal, normal if gram is None else _cross(to_x, to_y))
    if gram is not None:  # rounding of G can make these negative
        xx, yy, det_before = (jnp.maximum(x, 0.0) for x in (xx, yy, det_before))
    det = det_before + eps_2d * (xx + yy) + eps_2d * eps_2d
    return [xx + eps_2d, xy, yy + eps_2d], det, safe_sqrt(safe_div(det_before, det))


def project(
    means: Float[Array, "N 3"],
    quats: Float[Array, "N 4"] | None,
    scales: Float[Array, "N 3"] | None,
    opacities: Float[Array, "N"],
    camera: Camera,
    *,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps_2d: float = 0.3,
    antialiased: bool = False,
    camera_model: str = "pinhole",
    covars: Float[Array, "N 3 3"] | None = None,
) -> Projected:
    """Projects 3D Gaussians to screen-space conics (EWA splatting).

    Sigma' = J W Sigma W^T J^T + eps I  (Kerbl et al. 2023, eq. 5). With `antialiased` the opacity is multiplied by
    sqrt(det before / det after) of adding eps (Mip-Splatting, Yu et al. 2024, eq. 8). J is taken at the mean, moved to
    at most 0.3 of half the field of view beyond the image border, as in gsplat.

    Args:
      means, quats, scales, opacities: world frame; quaternions wxyz of any norm, scales as standard deviations in
        scene units, opacities in [0, 1] (after activation).
      camera: one camera, OpenCV axes (+x right, +y down, +z forward).
      width, height: image size, px.
      near_plane, far_plane: Gaussians with camera z outside are culled, scene units.
      radius_clip: Gaussians whose radii, rounded up, are both at most this are culled, px.
      eps_2d: variance of the 2D filter, px^2.
      antialiased: apply the opacity factor of the 2D filter.
      camera_model: "pinhole", or "ortho": x_px = fx x + skew y + cx, y_px = fy y + cy, with fx, fy in px per scene unit.
      covars: covariances, world frame, scene units^2. They replace quats and scales, which may then be None. Only the
        upper triangle is used, and only it has a gradient.
    Returns:
      Projected. Radius 0 marks culled Gaussians: outside the depth range, nowhere above alpha 1/255, off screen, at most
      radius_clip, not finite, not a covariance, or too large for float32 (numbers over 1e18, standard deviations over
      1e9 px).
    Raises:
      ValueError: eps_2d < 0, an unknown camera model, or neither covars nor both quats and scales.
    Differentiable in all arrays, the camera's included; gradient 0 where culled.
    """
    if eps_2d < 0:
        raise ValueError(f"eps_2d is {eps_2d} px^2, expected a variance >= 0: pass 0 to switch the 2D filter off")
    if camera_model not in CAMERA_MODELS:
        raise ValueError(f"camera_model={camera_model!r} came, expected one of {', '.join(CAMERA_MODELS)}")
    numbers = _materialize([*_columns(means), *_shape_columns(quats, scales, covars), opacities])
    finite = _all_below(LARGEST, numbers)
    if covars is not None:
        finite &= _is_covariance(numbers[3:-1])
    numbers = [jnp.where(finite, x, 0.0) for x in numbers]
    mean, shape, opacity = numbers[:3], numbers[3:-1], numbers[-1]
    rotation, translation, intrinsics = _camera_numbers(camera, means.shape[0])
    x_cam, y_cam, depth = (_dot(rotation[k], mean) + translation[k] for k in range(3))
    in_range = finite & (depth > near_plane) & (depth < far_plane)
    if camera_model == "ortho":
        lens = _Orthographic(x_cam, y_cam, intrinsics)
    else:
        z = jnp.where(in_range, depth, 1.0)
        lens = _make_pinhole(x_cam, y_cam, z, intrinsics, width=width, height=height)
    axes, gram = _shape_from_quat(shape[:4], shape[4:]) if covars is None else _shape_from_covariance(shape)
    row_x, row_y = _project_axes(axes, rotation, lens)
    drawable = in_range & _all_below(LARGEST_PX, row_x + row_y)
    # Zero the rest here: the fourth power of a larger number would be an infinity in the gradients.
    row_x, row_y = ([jnp.where(drawable, v, 0.0) for v in row] for row in (row_x, row_y))
    cov, det, compensation = _screen_covariance(row_x, row_y, gram, eps_2d)

    mean_px = lens.means_px()
    opacity = opacity * compensation if antialiased else opacity
    inverse = 1.0 / jnp.where(det > 0, det, 1.0)
    conic = [cov[2] * inverse, -cov[1] * inverse, cov[0] * inverse]
    radius = _radii(mean_px, cov, opacity, drawable & (det > 0), width=width, height=height)
    if radius_clip > 0:
        large = (jnp.ceil(radius[0]) > radius_clip) | (jnp.ceil(radius[1]) > radius_clip)
        radius = [jnp.where(large, r, 0.0) for r in radius]
    return _projected([*mean_px, *cov, *conic, depth, opacity], radius)


def _shape_columns(quats, scales, covars) -> Numbers:
    """Returns the columns of quats and scales, or the upper triangle of covars."""
    if covars is not None:
        xx, xy, xz, _, yy, yz, _, _, zz = _columns(covars.reshape(-1, 9))
        return [xx, xy, xz, yy, yz, zz]
    if quats is None or scales is None:
        raise ValueError("quats or scales is None, expected both: pass quats and scales, or covars")
    return [*_columns(quats), *_columns(scales)]


def _projected(numbers: Numbers, radius: Numbers) -> Projected:
    """Joins the columns of a Projected and resets culled rows.

    Args:
      numbers: mean (2), covariance (3), conic (3), depth, opacity.
      radius: radii (2); 0 where culled.
    """
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
    """Makes XLA compute these numbers once on a CPU; its CPU compiler would recompute them for each use."""
    return list(jax.lax.optimization_barrier(numbers)) if current_platform() == "cpu" else numbers


def _all_below(limit: float, numbers: Numbers) -> Bool[Array, "N"]:
    """Returns where all numbers are finite and below a limit. The rest must be zeroed: in a gradient 0 * infinity is NaN."""
    return functools.reduce(jnp.logical_and, [jnp.abs(x) < limit for x in numbers])


def _radii(mean_px: Numbers, cov: Numbers, opacity, valid: Bool[Array, "N"], *, width: int, height: int) -> Numbers:
    """Returns half extents in x and y of the region where alpha >= 1/255, px; 0 if not valid, not finite or off screen."""
    mean_px, cov, opacity = jax.lax.stop_gradient((mean_px, cov, opacity))
    log_ratio = jnp.log(jnp.maximum(opacity / MIN_ALPHA, 1e-6))
    deviations = jnp.sqrt(jnp.maximum(2.0 * log_ratio, 0.0))
    radii = [deviations * jnp.sqrt(jnp.maximum(variance, 0.0)) for variance in cov[::2]]
    # log_ratio = 0: the region is a single point, and radius 0 means culled.
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
    largest_of_all: Callable[[Float[Array, ""]], Float[Array, ""]] = lambda x: x,
) -> Float[Array, "N"]:
    """Computes the standard deviation of Mip-Splatting's 3D filter (Yu et al. 2024, eq. 7).

    sqrt(0.2) * z / fx, minimum over the cameras that see the mean.

    Args:
      means: world frame, scene units.
      alive: rows in use.
      cameras: the V training cameras, with the intrinsics of the current image scale.
      sizes: height and width of their images, px.
      near: a camera sees points with a larger z, scene units.
      margin: a camera sees points inside its image enlarged by this fraction of its size on each side.
      largest_of_all: the largest of this number and those of other devices, where these are not all means.
    Returns:
      Standard deviations, scene units. Points that no camera sees get the largest value among alive points that some
      camera sees.
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
    largest = largest_of_all(jnp.max(jnp.where(seen, best, 0.0)))
    return jnp.sqrt(0.2) * jnp.where(jnp.isfinite(best), best, largest)


def apply_filter_3d(
    scales: Float[Array, "N 3"], opacities: Float[Array, "N"], filter_3d: Float[Array, "N"]
) -> tuple[Float[Array, "N 3"], Float[Array, "N"]]:
    """Convolves Gaussians with the 3D filter and keeps their integral (Yu et al. 2024, eq. 6 and 7).

    Args:
      scales, filter_3d: standard deviations, scene units.
      opacities: in [0, 1].
    Returns:
      Scales and opacities after the filter.
    """
    filtered = jnp.sqrt(scales**2 + filter_3d[:, None] ** 2)
    return filtered, opacities * jnp.prod(scales / filtered, axis=-1)
