"""Bakes the light of an embedded world into its texels: direct light, ambient light, and one diffuse bounce."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image

from bags_jax.synthetic.raycast import (
    NUM_FACES,
    Painter,
    Solid,
    World,
    cast,
    dot_rays,
    find_bounding_corners,
    intersect,
    make_face_grid,
    place_on_surface,
    rotate_to_local,
    scale_to_face,
)

_LIGHT_SAMPLES, _LAMP_SAMPLES, _BOUNCE_SAMPLES = 16, 4, 64  # rays per light-map sample
# Light-map samples per scene unit (half as many in the room). Light maps are enlarged to the size of the texture.
_DIRECT_PER_UNIT, _BOUNCE_PER_UNIT = 32.0, 14.0


@dataclasses.dataclass(frozen=True)
class Light:
    """A ball of light, and the uniform light that replaces all bounces after the first."""

    center: Float[np.ndarray, "3"]
    radius: float  # scene units; a larger ball makes softer shadows
    power: Float[np.ndarray, "3"]  # irradiance of a surface that faces the ball at distance 1
    ambient: Float[np.ndarray, "3"]  # irradiance far from all surfaces


@dataclasses.dataclass(frozen=True)
class Lamp:
    """A small ball of light that lights its surroundings only."""

    center: Float[np.ndarray, "3"]
    radius: float  # scene units
    power: Float[np.ndarray, "3"]  # irradiance of a surface that faces the ball at distance 1
    reach: float  # scene units; light ends smoothly here


def _find_occlusion(solids: tuple[Solid, ...], origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Returns [n]: True if a solid other than the room lies between origin and origin + direction, for rays [3, n]."""
    blocked = np.zeros(directions.shape[1], bool)
    for solid in solids:
        if solid.hollow:
            continue
        enter, leave = intersect(
            solid, rotate_to_local(solid, origins - solid.center[:, None]), rotate_to_local(solid, directions)
        )
        blocked |= (enter < leave) & (leave > 0.0) & (enter < 1.0)
    return blocked


def _make_tangents(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two unit tangents [3, n] of unit normals [3, n]."""
    helper = np.where(np.abs(normals[2:3]) < 0.9, [[0.0], [0.0], [1.0]], [[1.0], [0.0], [0.0]]).astype(np.float32)
    tangent = np.cross(helper, normals, axis=0)
    tangent /= np.linalg.norm(tangent, axis=0, keepdims=True)
    return tangent, np.cross(normals, tangent, axis=0)


def _light_directly(
    solids: tuple[Solid, ...], points: np.ndarray, normals: np.ndarray, light: Light | Lamp
) -> np.ndarray:
    """Returns the irradiance [n, 3] straight from the light, sampled on its ball (Fibonacci lattice)."""
    samples, towards = [], []
    num = _LAMP_SAMPLES if isinstance(light, Lamp) else _LIGHT_SAMPLES
    for i in range(num):
        height, angle = 1 - (2 * i + 1) / num, i * math.pi * (3 - math.sqrt(5))
        flat = math.sqrt(1 - height * height)
        offset = light.radius * np.array([flat * math.cos(angle), flat * math.sin(angle), height])
        towards.append((light.center + offset).astype(np.float32)[:, None] - points)
        squared, cosine, _ = dot_rays(normals, towards[-1])
        samples.append(np.maximum(cosine, 0.0) / squared**1.5)
    facing = np.max(samples, axis=0) > 0
    for solid in solids:
        if solid.hollow:
            continue
        near = np.flatnonzero(facing & _may_shade(solid, points, light))
        origins = rotate_to_local(solid, points[:, near] - solid.center[:, None])
        for sample, direction in zip(samples, towards, strict=True):
            enter, leave = intersect(solid, origins, rotate_to_local(solid, direction[:, near]))
            sample[near] *= ~((enter < leave) & (leave > 0.0) & (enter < 1.0))
    return np.sum(samples, axis=0)[:, None] / num * light.power


def _light_by_lamps(
    solids: tuple[Solid, ...], points: np.ndarray, normals: np.ndarray, lamps: tuple[Lamp, ...]
) -> np.ndarray:
    """Returns the irradiance [n, 3] straight from the lamps, each within its reach."""
    total = np.zeros((points.shape[1], 3), np.float32)
    for lamp in lamps:
        distances = np.linalg.norm(points - lamp.center[:, None], axis=0)
        near = np.flatnonzero(distances < lamp.reach)
        if near.size:
            fade = np.square(1 - np.square(distances[near] / np.float32(lamp.reach)))
            around = tuple(s for s in solids if _is_near(s, lamp))
            total[near] += fade[:, None] * _light_directly(around, points[:, near], normals[:, near], lamp)
    return total


def _is_near(solid: Solid, lamp: Lamp) -> bool:
    """True if the solid's bounding ball meets the lamp's reach."""
    return float(np.linalg.norm(solid.center - lamp.center) - np.linalg.norm(solid.half)) < lamp.reach


def _may_shade(solid: Solid, points: np.ndarray, light: Light | Lamp) -> np.ndarray:
    """Returns [n]: False if no path from a point [3, n] to the light meets the solid's bounding ball."""
    reach = float(np.linalg.norm(solid.half)) + light.radius + 0.01
    paths = points - light.center[:, None]
    lengths = np.linalg.norm(paths, axis=0)
    to_solid = solid.center - light.center
    along = to_solid @ paths / lengths
    return (to_solid @ to_solid - along**2 < reach**2) & (along > -reach) & (along < lengths + reach)


def _light_indirectly(
    world: World, solids: tuple[Solid, ...], points: np.ndarray, normals: np.ndarray, light: Light
) -> np.ndarray:
    """Returns the irradiance [n, 3] of one bounce off `world`, and of the ambient light where nothing near hides it."""
    tangent, bitangent = _make_tangents(normals)
    total = np.zeros((points.shape[1], 3), np.float32)
    for i in range(_BOUNCE_SAMPLES):  # cosine-weighted directions on a golden-ratio spiral
        radius, angle = math.sqrt((i + 0.5) / _BOUNCE_SAMPLES), i * math.pi * (3 - math.sqrt(5))
        towards = radius * (math.cos(angle) * tangent + math.sin(angle) * bitangent)
        t, radiance = cast(world, points, towards + np.float32(math.sqrt(1 - radius**2)) * normals)
        total += radiance + np.minimum(t / np.float32(1.5), 1.0)[:, None] * light.ambient
    buried = _find_occlusion(solids, points, np.float32(1e-4) * normals)
    return np.where(buried[:, None], np.float32(0.0), total / _BOUNCE_SAMPLES)


def _enlarge(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarges a light map [h, w, 3] by bicubic interpolation."""
    planes = [Image.fromarray(np.ascontiguousarray(field[..., i], np.float32)) for i in range(3)]
    planes = [np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return np.maximum(np.stack(planes, axis=-1), 0.0)


def _bake_maps(
    faces: list[tuple[Solid, int]], shapes: np.ndarray, per_unit: float, irradiance: Callable
) -> list[np.ndarray]:
    """Returns the irradiance [h, w, 3] of each face at its texture's shape, from `per_unit` samples per scene unit."""
    rates = [
        per_unit * _get_density(s, face) * (0.4 if s.small else 1.0) * (0.5 if s.hollow else 1.0) * s.light_detail
        for s, face in faces
    ]
    grids = [make_face_grid(*pair, rate, 5) for pair, rate in zip(faces, rates, strict=True)]
    places = [place_on_surface(*pair, u.ravel(), v.ravel()) for pair, (u, v) in zip(faces, grids, strict=True)]
    points, normals = (np.concatenate(parts, axis=1) for parts in zip(*places, strict=True))
    chunks = np.array_split(np.arange(points.shape[1]), max(1, points.shape[1] // 8192))  # chunks that fit in the cache
    values = np.concatenate([irradiance(points[:, chunk], normals[:, chunk]) for chunk in chunks])
    ends = np.cumsum([u.size for u, _ in grids])
    parts = [part.reshape(*u.shape, 3) for part, (u, _) in zip(np.split(values, ends[:-1]), grids, strict=True)]
    return [_enlarge(part, *shape) for part, shape in zip(parts, shapes.tolist(), strict=True)]


def _get_density(solid: Solid, face: int) -> float:
    """Returns the texel density of a face relative to its solid's."""
    return 0.1 if face in solid.hidden_faces else 1.0


def _drop_small(world: World) -> World:
    """Returns the world without its small solids: light bounces off the others only."""
    large = [i for i, solid in enumerate(world.solids) if not solid.small]
    solids = tuple(world.solids[i] for i in large)
    return dataclasses.replace(world, solids=solids, first_faces=world.first_faces[large], corners=world.corners[large])


def _paint_faces(faces: list[tuple[Solid, int]], find_paint: Callable[[Solid], Painter | None]) -> np.ndarray:
    """Returns what the solids' painters paint on every texel [t, 3]; 0 where a solid has no such painter."""
    painted = []
    for solid, face in faces:
        u, v = make_face_grid(solid, face, solid.texels * _get_density(solid, face), 4)
        paint = find_paint(solid)
        colors = paint(face, *scale_to_face(solid, face, u, v)) if paint else np.zeros((*u.shape, 3))
        painted.append(colors.reshape(-1, 3))
    return np.concatenate(painted).astype(np.float32)


def make_world(solids: tuple[Solid, ...], light: Light, lamps: tuple[Lamp, ...] = ()) -> World:
    """Paints every face and bakes its light: direct with soft shadows, ambient occlusion, and one diffuse bounce.

    Args:
      solids: at most 256. One of them is hollow and surrounds all others and every camera, so that no ray misses.
      light: shines on everything: the sun, the moon, or the lamp of a room.
      lamps: more lights, of a short reach each.
    Deterministic. Reflected light is clipped at white, as paint is; the emission of a solid is added unclipped.
    """
    faces = [(solid, face) for solid in solids for face in range(NUM_FACES[solid.kind])]
    albedo = _paint_faces(faces, lambda solid: solid.paint)
    shapes = np.array(
        [make_face_grid(s, face, s.texels * _get_density(s, face), 4)[0].shape for s, face in faces], np.int32
    )
    counts = np.array([NUM_FACES[solid.kind] for solid in solids])
    world = World(
        solids=solids,
        first_faces=(np.cumsum(counts) - counts).astype(np.int32),
        face_starts=(np.cumsum(shapes.prod(1)) - shapes.prod(1)).astype(np.int32),
        face_widths=shapes[:, 1],
        face_heights=shapes[:, 0],
        corners=np.stack([find_bounding_corners(solid) for solid in solids]),
        atlas=albedo,
    )

    def light_directly(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        by_light = _light_directly(solids, points, normals, light)
        return by_light + _light_by_lamps(solids, points, normals, lamps) if lamps else by_light

    maps = _bake_maps(faces, shapes, _DIRECT_PER_UNIT, light_directly)
    irradiance = np.concatenate([part.reshape(-1, 3) for part in maps])
    world = dataclasses.replace(world, atlas=albedo * irradiance)
    maps = _bake_maps(
        faces, shapes, _BOUNCE_PER_UNIT, lambda p, n: _light_indirectly(_drop_small(world), solids, p, n, light)
    )
    irradiance += np.concatenate([part.reshape(-1, 3) for part in maps])
    atlas = np.clip(albedo * irradiance, 0.0, 1.0)
    if any(solid.emission for solid in solids):
        atlas += _paint_faces(faces, lambda solid: solid.emission)
    return dataclasses.replace(world, atlas=atlas)
