"""The light of the embedded scenes, baked into the atlas of their texels: direct, ambient, and one diffuse bounce."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image

from bags_jax.synthetic.raycast import (
    NUM_FACES,
    Solid,
    World,
    bounding_corners,
    cast,
    face_grid,
    interval,
    paint_coordinates,
    products,
    surface_points,
    to_local,
)

_LIGHT_SAMPLES, _BOUNCE_SAMPLES = 16, 64  # rays a light-map sample
# Light-map samples a scene unit (half in the room); they are enlarged to the size of the texture.
_DIRECT_PER_UNIT, _BOUNCE_PER_UNIT = 32.0, 14.0


@dataclasses.dataclass(frozen=True)
class Light:
    """A ball of light, and the even light that stands for all bounces after the first."""

    center: Float[np.ndarray, "3"]
    radius: float  # scene units: how soft the shadows are
    power: Float[np.ndarray, "3"]  # irradiance at distance 1, facing it
    ambient: Float[np.ndarray, "3"]  # irradiance where nothing is near


def _occluded(solids: tuple[Solid, ...], origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Whether anything but the room lies between origin and origin + direction, for rays [3, n]."""
    blocked = np.zeros(directions.shape[1], bool)
    for solid in solids:
        if solid.hollow:
            continue
        enter, leave = interval(solid, to_local(solid, origins - solid.center[:, None]), to_local(solid, directions))
        blocked |= (enter < leave) & (leave > 0.0) & (enter < 1.0)
    return blocked


def _tangents(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit tangents [3, n] for unit normals [3, n]."""
    helper = np.where(np.abs(normals[2:3]) < 0.9, [[0.0], [0.0], [1.0]], [[1.0], [0.0], [0.0]]).astype(np.float32)
    tangent = np.cross(helper, normals, axis=0)
    tangent /= np.linalg.norm(tangent, axis=0, keepdims=True)
    return tangent, np.cross(normals, tangent, axis=0)


def _direct(solids: tuple[Solid, ...], points: np.ndarray, normals: np.ndarray, light: Light) -> np.ndarray:
    """Irradiance [n, 3] straight from the light, from points spread over its ball (Fibonacci lattice)."""
    lit, towards = [], []
    for i in range(_LIGHT_SAMPLES):
        height, turn = 1 - (2 * i + 1) / _LIGHT_SAMPLES, i * math.pi * (3 - math.sqrt(5))
        flat = math.sqrt(1 - height * height)
        offset = light.radius * np.array([flat * math.cos(turn), flat * math.sin(turn), height])
        towards.append((light.center + offset).astype(np.float32)[:, None] - points)
        squared, cosine, _ = products(normals, towards[-1])
        lit.append(np.maximum(cosine, 0.0) / squared**1.5)
    facing = np.max(lit, axis=0) > 0
    for solid in solids:
        if solid.hollow:
            continue
        near = np.flatnonzero(facing & _may_shade(solid, points, light))
        origins = to_local(solid, points[:, near] - solid.center[:, None])
        for sample, direction in zip(lit, towards, strict=True):
            enter, leave = interval(solid, origins, to_local(solid, direction[:, near]))
            sample[near] *= ~((enter < leave) & (leave > 0.0) & (enter < 1.0))
    return np.sum(lit, axis=0)[:, None] / _LIGHT_SAMPLES * light.power


def _may_shade(solid: Solid, points: np.ndarray, light: Light) -> np.ndarray:
    """False where the solid's bounding ball lies off every way [n] from a point to the light."""
    reach = float(np.linalg.norm(solid.half)) + light.radius + 0.01
    ways = points - light.center[:, None]
    lengths = np.linalg.norm(ways, axis=0)
    to_solid = solid.center - light.center
    along = to_solid @ ways / lengths
    return (to_solid @ to_solid - along**2 < reach**2) & (along > -reach) & (along < lengths + reach)


def _indirect(
    world: World, solids: tuple[Solid, ...], points: np.ndarray, normals: np.ndarray, light: Light
) -> np.ndarray:
    """Irradiance [n, 3] of one bounce off `world`, and of the ambient light as far as nothing near hides it."""
    tangent, bitangent = _tangents(normals)
    total = np.zeros((points.shape[1], 3), np.float32)
    for i in range(_BOUNCE_SAMPLES):  # cosine-weighted directions on a golden-ratio spiral
        radius, angle = math.sqrt((i + 0.5) / _BOUNCE_SAMPLES), i * math.pi * (3 - math.sqrt(5))
        towards = radius * (math.cos(angle) * tangent + math.sin(angle) * bitangent)
        t, radiance = cast(world, points, towards + np.float32(math.sqrt(1 - radius**2)) * normals)
        total += radiance + np.minimum(t / np.float32(1.5), 1.0)[:, None] * light.ambient
    buried = _occluded(solids, points, np.float32(1e-4) * normals)
    return np.where(buried[:, None], np.float32(0.0), total / _BOUNCE_SAMPLES)


def _enlarge(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a light map [h, w, 3] smoothly."""
    planes = [Image.fromarray(np.ascontiguousarray(field[..., i], np.float32)) for i in range(3)]
    planes = [np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return np.maximum(np.stack(planes, axis=-1), 0.0)


def _light_maps(
    faces: list[tuple[Solid, int]], shapes: np.ndarray, per_unit: float, irradiance: Callable
) -> list[np.ndarray]:
    """Irradiance [h, w, 3] of each face at its texture's shape, from `per_unit` samples a scene unit (room: half)."""
    rates = [per_unit * _density(s, face) * (0.4 if s.small else 1.0) * (0.5 if s.hollow else 1.0) for s, face in faces]
    grids = [face_grid(*pair, rate, 5) for pair, rate in zip(faces, rates, strict=True)]
    places = [surface_points(*pair, u.ravel(), v.ravel()) for pair, (u, v) in zip(faces, grids, strict=True)]
    points, normals = (np.concatenate(parts, axis=1) for parts in zip(*places, strict=True))
    chunks = np.array_split(np.arange(points.shape[1]), max(1, points.shape[1] // 8192))  # that fit in the cache
    values = np.concatenate([irradiance(points[:, chunk], normals[:, chunk]) for chunk in chunks])
    ends = np.cumsum([u.size for u, _ in grids])
    parts = [part.reshape(*u.shape, 3) for part, (u, _) in zip(np.split(values, ends[:-1]), grids, strict=True)]
    return [_enlarge(part, *shape) for part, shape in zip(parts, shapes.tolist(), strict=True)]


def _density(solid: Solid, face: int) -> float:
    """Texels of a face relative to the solid's."""
    return 0.1 if face in solid.unseen_faces else 1.0


def _without_small(world: World) -> World:
    """The world that light bounces off."""
    large = [i for i, solid in enumerate(world.solids) if not solid.small]
    solids = tuple(world.solids[i] for i in large)
    return dataclasses.replace(world, solids=solids, first_faces=world.first_faces[large], corners=world.corners[large])


def make_world(solids: tuple[Solid, ...], light: Light) -> World:
    """Paints every face and bakes its light: direct with soft shadows, ambient occlusion, and one diffuse bounce.

    Args:
      solids: at most 256; one of them hollow, around all others and every camera: so no ray ever misses.
    Deterministic.
    """
    faces = [(solid, face) for solid in solids for face in range(NUM_FACES[solid.kind])]
    albedos = []
    for solid, face in faces:
        u, v = face_grid(solid, face, solid.texels * _density(solid, face), 4)
        albedos.append(solid.paint(face, *paint_coordinates(solid, face, u, v)).reshape(-1, 3))
    albedo = np.concatenate(albedos).astype(np.float32)
    shapes = np.array([face_grid(s, face, s.texels * _density(s, face), 4)[0].shape for s, face in faces], np.int32)
    counts = np.array([NUM_FACES[solid.kind] for solid in solids])
    world = World(
        solids=solids,
        first_faces=(np.cumsum(counts) - counts).astype(np.int32),
        face_starts=(np.cumsum(shapes.prod(1)) - shapes.prod(1)).astype(np.int32),
        face_widths=shapes[:, 1],
        face_heights=shapes[:, 0],
        corners=np.stack([bounding_corners(solid) for solid in solids]),
        atlas=albedo,
    )
    maps = _light_maps(faces, shapes, _DIRECT_PER_UNIT, lambda p, n: _direct(solids, p, n, light))
    light_seen = np.concatenate([part.reshape(-1, 3) for part in maps])
    world = dataclasses.replace(world, atlas=albedo * light_seen)
    maps = _light_maps(
        faces, shapes, _BOUNCE_PER_UNIT, lambda p, n: _indirect(_without_small(world), solids, p, n, light)
    )
    light_seen += np.concatenate([part.reshape(-1, 3) for part in maps])
    return dataclasses.replace(world, atlas=np.clip(albedo * light_seen, 0.0, 1.0))
