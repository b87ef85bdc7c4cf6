"""A ray caster for boxes, spheres and cylinders (NumPy, float32).

Every surface is Lambertian, so its radiance does not depend on the view. `bake.py` computes light, shadows and one
bounce once for each texel. A frame is then the nearest hits and a texture look-up (`render_frame`).

Rays are arrays [3, n]. World frame: right-handed, z up. The direction of a camera's ray has camera z = 1, so the ray
parameter t is the camera depth.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

_MISS = np.float32(1e9)
_OFFSET = 1e-3  # height above the surface where baked rays start, scene units
# Box faces -x +x -y +y -z +z: the axis and its sign that point right, and up, for a viewer outside.
_RIGHT_AXIS, _RIGHT_SIGN = np.array([1, 1, 0, 0, 0, 0]), np.array([-1, 1, 1, -1, 1, 1], np.float32)
_UP_AXIS, _UP_SIGN = np.array([2, 2, 2, 2, 1, 1]), np.array([1, 1, 1, 1, -1, 1], np.float32)
NUM_FACES = {"box": 6, "sphere": 1, "cylinder": 3}  # a cylinder's faces: side, bottom, top

Painter = Callable[[int, np.ndarray, np.ndarray], np.ndarray]  # (face, x, y) -> linear albedo [h, w, 3]


@dataclasses.dataclass(frozen=True)
class Solid:
    """One convex body. Its painter receives a face and the coordinates x (right) and y (up) for a viewer outside.

    Box faces and cylinder caps: scene units from the face's centre. Sphere: longitude and latitude, rad. Cylinder side:
    longitude, rad, and height above the middle, scene units. Longitude 0 is local -y.
    """

    kind: str  # "box", "sphere" (an ellipsoid if its half extents differ) or "cylinder" (axis: local z)
    center: Float[np.ndarray, "3"]  # world frame
    half: Float[np.ndarray, "3"]  # half extents along the local axes, scene units
    paint: Painter
    rotation: Float[np.ndarray, "3 3"] | None = None  # world from local; None: identity
    texels: float = 140.0  # per scene unit
    small: bool = False  # coarse light map, and no bounce of light off this solid
    hollow: bool = False  # visible from inside: the room
    hidden_faces: tuple[int, ...] = ()  # these have a coarse texture
    emission: Painter | None = None  # radiance that the surface sends out itself, any size; lights no other solid
    light_detail: float = 1.0  # factor of the light map's samples per scene unit


@dataclasses.dataclass(frozen=True)
class World:
    """Solids and the atlas of their radiance. S solids, F faces of all solids, T texels."""

    solids: tuple[Solid, ...]
    first_faces: Int[np.ndarray, "S"]  # index of each solid's first face
    face_starts: Int[np.ndarray, "F"]  # index of each face's first texel
    face_widths: Int[np.ndarray, "F"]  # texels
    face_heights: Int[np.ndarray, "F"]  # texels; rows go up
    corners: Float[np.ndarray, "S 3 8"]  # bounding box of each solid, world frame
    atlas: Float[np.ndarray, "T 3"]  # linear light: in [0, 1], and above where a solid shines


def rotate_to_local(solid: Solid, vectors: np.ndarray) -> np.ndarray:
    """Rotates world vectors [3, n] to the solid's axes."""
    return vectors if solid.rotation is None else solid.rotation.T @ vectors


def _intersect_slab(origin: np.ndarray, direction: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the interval of t with |coordinate| < half."""
    inverse = 1.0 / np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction)
    middle, reach = -origin * inverse, np.abs(half * inverse)
    return middle - reach, middle + reach


def dot_rays(origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns d.d, o.d and o.o of rays over their rows (2: across a cylinder, 3: a sphere)."""
    dd, od, oo = direction[0] * direction[0], origin[0] * direction[0], origin[0] * origin[0]
    for o, d in zip(origin[1:], direction[1:], strict=True):  # faster than einsum or sum(axis=0)
        dd, od, oo = dd + d * d, od + o * d, oo + o * o
    return dd, od, oo


def _intersect_ball(origin: np.ndarray, direction: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the interval of t in a ball (3 rows) or an endless cylinder (2 rows); a miss starts at _MISS."""
    a, b, c = dot_rays(origin, direction)
    a = a + np.float32(1e-12)
    discriminant = b * b - a * (c - np.float32(radius * radius))
    root = np.sqrt(np.maximum(discriminant, 0.0))
    enter = np.where(discriminant > 0.0, (-b - root) / a, _MISS)
    return enter, (root - b) / a


def intersect(solid: Solid, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the interval of t of rays [3, n] in a solid (both in its axes); a hit if enter < leave."""
    half = solid.half.tolist()
    if solid.kind == "sphere":
        if half[0] == half[1] == half[2]:
            return _intersect_ball(origin, direction, half[0])
        return _intersect_ball(origin / solid.half[:, None], direction / solid.half[:, None], 1.0)
    enter, leave = _intersect_slab(origin[2], direction[2], half[2])
    if solid.kind == "cylinder":
        sides = [_intersect_ball(origin[:2], direction[:2], half[0])]
    else:
        sides = [_intersect_slab(origin[0], direction[0], half[0]), _intersect_slab(origin[1], direction[1], half[1])]
    for side_enter, side_leave in sides:
        enter, leave = np.maximum(enter, side_enter), np.minimum(leave, side_leave)
    return enter, leave


def _find_uv(solid: Solid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns face index, u and v in [0, 1] of points [3, n] on the solid's surface, in its axes."""
    x, y, z = scaled = points / solid.half[:, None]
    if solid.kind == "box":
        size_x, size_y, size_z = np.abs(scaled)
        on_x = (size_x > size_y) & (size_x > size_z)
        on_y = ~on_x & (size_y > size_z)
        positive = np.where(on_x, x, np.where(on_y, y, z)) > 0
        sign = np.where(positive, np.float32(1), np.float32(-1))
        u = np.where(on_x, sign * y, np.where(on_y, -sign * x, x))  # by _RIGHT_* and _UP_*
        v = np.where(on_x | on_y, z, sign * y)
        return np.where(on_x, 0, np.where(on_y, 2, 4)) + positive, 0.5 + 0.5 * u, 0.5 + 0.5 * v
    u = 0.5 + np.arctan2(x, -y) / np.float32(2 * math.pi)
    if solid.kind == "sphere":
        v = 0.5 + np.arcsin(np.clip(z, -1.0, 1.0)) / np.float32(math.pi)
        return np.zeros(u.shape, int), u, v
    cap = np.abs(z) > np.sqrt(x * x + y * y)
    face = np.where(cap, np.where(z > 0, 2, 1), 0)
    return face, np.where(cap, 0.5 + 0.5 * x, u), np.where(cap, 0.5 + 0.5 * y, 0.5 + 0.5 * z)


def _measure_face(solid: Solid, face: int) -> tuple[float, float]:
    """Returns the width and height of a face, scene units."""
    half = solid.half.tolist()
    if solid.kind == "box":
        return 2 * half[_RIGHT_AXIS[face]], 2 * half[_UP_AXIS[face]]
    if solid.kind == "sphere":
        return 2 * math.pi * max(half), math.pi * max(half)
    return (2 * math.pi * half[0], 2 * half[2]) if face == 0 else (2 * half[0], 2 * half[0])


def make_face_grid(solid: Solid, face: int, per_unit: float, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns u and v of the texel centres of a face, [h, w] each."""
    width, height = (max(smallest, round(size * per_unit)) for size in _measure_face(solid, face))
    u, v = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    grid_u, grid_v = np.meshgrid(u.astype(np.float32), v.astype(np.float32))
    return grid_u, grid_v


def scale_to_face(solid: Solid, face: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales u and v in [0, 1] to the coordinates of the face's painter."""
    width, height = _measure_face(solid, face)
    if solid.kind == "sphere":
        width, height = 2 * math.pi, math.pi
    elif solid.kind == "cylinder" and face == 0:
        width = 2 * math.pi
    return (u - 0.5) * np.float32(width), (v - 0.5) * np.float32(height)


def place_on_surface(solid: Solid, face: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns world points [3, n] just off the surface at (u, v) [n], and the normals there, towards the viewer."""
    x, y = scale_to_face(solid, face, u, v)
    normals = np.zeros((3, u.size), np.float32)
    points = np.zeros((3, u.size), np.float32)
    if solid.kind == "box":
        points[_RIGHT_AXIS[face]], points[_UP_AXIS[face]] = x * _RIGHT_SIGN[face], y * _UP_SIGN[face]
        sign = 1.0 if face % 2 else -1.0
        points[face // 2], normals[face // 2] = sign * solid.half[face // 2], sign
    elif solid.kind == "cylinder" and face > 0:
        sign = 1.0 if face == 2 else -1.0
        points[0], points[1], points[2], normals[2] = x, y, sign * solid.half[2], sign
    else:
        latitude = y if solid.kind == "sphere" else np.zeros_like(y)
        normals[0], normals[1] = np.sin(x) * np.cos(latitude), -np.cos(x) * np.cos(latitude)
        normals[2] = np.sin(latitude)
        points[:] = normals * (solid.half[:, None] if solid.kind == "sphere" else solid.half[0])
        if solid.kind == "cylinder":
            points[2] = y
        elif solid.half.min() < solid.half.max():
            normals = normals / solid.half[:, None]
            normals = normals / np.linalg.norm(normals, axis=0, keepdims=True)
    if solid.hollow:
        normals = -normals
    points = points + _OFFSET * normals
    if solid.rotation is not None:
        points, normals = solid.rotation @ points, solid.rotation @ normals
    return points + solid.center[:, None], normals


def _find_nearest(
    solids: tuple[Solid, ...], origins: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ray parameter and solid index of the first hit of rays [3, n] (origins [3, n] or [3, 1])."""
    nearest = np.full(directions.shape[1], _MISS)
    owners = np.zeros(directions.shape[1], np.int32)
    for index, solid in enumerate(solids):
        enter, leave = intersect(
            solid, rotate_to_local(solid, origins - solid.center[:, None]), rotate_to_local(solid, directions)
        )
        t = leave if solid.hollow else enter
        closer = (enter < leave) & (t > 0.0) & (t < nearest)
        np.copyto(nearest, t, where=closer)
        np.copyto(owners, np.int32(index), where=closer)
    return nearest, owners


def _interpolate_texels(world: World, faces: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the bilinear radiance [n, 3] at (u, v) of faces. np.take is several times faster than indexing."""
    width, height, start = (np.take(x, faces) for x in (world.face_widths, world.face_heights, world.face_starts))
    last_x, last_y = width.astype(np.float32) - 1, height.astype(np.float32) - 1
    x, y = np.clip(u * (last_x + 1) - 0.5, 0, last_x), np.clip(v * (last_y + 1) - 0.5, 0, last_y)
    left, low = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - left.astype(np.float32), y - low.astype(np.float32)
    corner = start + low * width + left
    right, up = (left < width - 1).astype(np.int32), np.where(low < height - 1, width, 0)
    total = np.take(world.atlas, corner, axis=0) * ((1 - fx) * (1 - fy))[:, None]
    total += np.take(world.atlas, corner + right, axis=0) * (fx * (1 - fy))[:, None]
    total += np.take(world.atlas, corner + up, axis=0) * ((1 - fx) * fy)[:, None]
    total += np.take(world.atlas, corner + right + up, axis=0) * (fx * fy)[:, None]
    return total


def _look_up_radiance(world: World, points: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Returns the radiance [n, 3] of world points [3, n] on the surfaces of the solids `owners` [n]."""
    order = np.argsort(owners.astype(np.uint8), kind="stable")  # makes one slice of each solid's points
    points = np.take(points, order, axis=1)
    counts = np.bincount(owners, minlength=len(world.solids))
    faces = np.empty(owners.shape, np.int32)
    u, v = np.empty(owners.shape, np.float32), np.empty(owners.shape, np.float32)
    for index in np.flatnonzero(counts).tolist():
        solid, own = world.solids[index], slice(counts[:index].sum(), counts[: index + 1].sum())
        face, u[own], v[own] = _find_uv(solid, rotate_to_local(solid, points[:, own] - solid.center[:, None]))
        faces[own] = world.first_faces[index] + face
    colors = np.empty((owners.size, 3), np.float32)
    colors[order] = _interpolate_texels(world, faces, u, v)
    return colors


def make_camera_rays(
    viewmat: Float[np.ndarray, "4 4"], K: Float[np.ndarray, "3 3"], pixels: Float[np.ndarray, "2 n"]
) -> tuple[Float[np.ndarray, "3 1"], Float[np.ndarray, "3 n"]]:
    """Returns the world origin and directions (camera z = 1) of the rays through pixel positions (x, y), px."""
    rotation = viewmat[:3, :3].astype(np.float32)
    x, y = (pixels[0] - K[0, 2]) / K[0, 0], (pixels[1] - K[1, 2]) / K[1, 1]
    directions = rotation.T @ np.stack([x, y, np.ones_like(x)]).astype(np.float32)
    return (-rotation.T @ viewmat[:3, 3].astype(np.float32))[:, None], directions


def cast(
    world: World, origins: Float[np.ndarray, "3 _m"], directions: Float[np.ndarray, "3 n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n 3"]]:
    """Returns the ray parameters and linear radiance of the rays' first hits (_m = n, or 1: a common origin)."""
    t, owners = _find_nearest(world.solids, origins, directions)
    return t, _look_up_radiance(world, origins + t * directions, owners)


def find_bounding_corners(solid: Solid) -> np.ndarray:
    """Returns the corners of the solid's bounding box: world points [3, 8]."""
    corners = solid.half[:, None] * np.array(list(itertools.product((-1, 1), repeat=3)), np.float32).T
    return solid.center[:, None] + (corners if solid.rotation is None else solid.rotation @ corners)


def _project_boxes(world: World, viewmat: np.ndarray, K: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns first row, end row, first column, end column [S, 4] of the pixels that each solid can cover."""
    corners = viewmat[:3, :3] @ world.corners + viewmat[:3, 3:]  # [S, 3, 8]
    depths = np.maximum(corners[:, 2], 0.05)
    x, y = (corners[:, i] / depths * K[i, i] + K[i, 2] for i in (0, 1))
    boxes = np.floor(np.stack([y.min(1) - 0.5, y.max(1) + 1.5, x.min(1) - 0.5, x.max(1) + 1.5], axis=1))
    boxes[corners[:, 2].min(1) < 0.05] = 0, height, 0, width  # the solid reaches behind the camera
    return np.clip(boxes, 0, [height, height, width, width]).astype(int)


def render_frame(
    world: World, viewmat: Float[np.ndarray, "4 4"], K: Float[np.ndarray, "3 3"], *, height: int, width: int
) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "height width"]]:
    """Casts one ray through each pixel centre. Returns linear radiance and camera depth (scene units).

    Shift the principal point to move the samples in their pixels.
    """
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    origin, flat = make_camera_rays(viewmat, K, np.stack([columns.ravel(), rows.ravel()]))
    directions = flat.reshape(3, height, width)
    nearest = np.full((height, width), _MISS)
    owners = np.zeros((height, width), np.int32)
    boxes = _project_boxes(world, viewmat, K, height, width).tolist()
    for index, (solid, (top, bottom, left, right)) in enumerate(zip(world.solids, boxes, strict=True)):
        if top >= bottom or left >= right:
            continue
        box = slice(top, bottom), slice(left, right)
        rays = directions[:, *box]
        local = rotate_to_local(solid, origin - solid.center[:, None])
        enter, leave = intersect(solid, local, rotate_to_local(solid, rays.reshape(3, -1)))
        t, leave = (x.reshape(rays.shape[1:]) for x in ((leave if solid.hollow else enter), leave))
        closer = (t < nearest[box]) & (t > 0.0) & (t <= leave)
        np.copyto(nearest[box], t, where=closer)
        np.copyto(owners[box], np.int32(index), where=closer)
    colors = _look_up_radiance(world, origin + nearest.ravel() * flat, owners.ravel())
    return colors.reshape(height, width, 3), nearest
