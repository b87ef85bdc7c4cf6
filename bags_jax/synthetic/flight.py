"""A world of the embedded scenes: a town by night, from a drone (own design, no files needed).

Scene units: one unit is about 3 m. The town is laid out around `_MIDDLE`: an avenue bends along a circle of radius 22,
other streets on circles beside it, and cross streets point to the middle. The drone follows the avenue at a height of 4
to 6, and looks forward and down. The nearest roofs are 3 units away, the lights of the plain up to 300, and the sky is a
ball of radius 420 about everything. World frame: z up, the ground at z = 0.

Lamps, windows and the lights of cars are brighter than white: a pixel clips after the exposure has averaged their light,
so a moving camera draws trails.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np

from bags_jax.data.poses import make_rotation
from bags_jax.synthetic.bake import Lamp, Light, make_world
from bags_jax.synthetic.layout import Layout
from bags_jax.synthetic.paint import cells, edge, fill, mix, noise, plain, rgb
from bags_jax.synthetic.raycast import Solid, World
from bags_jax.synthetic.sensor import Sensor
from bags_jax.synthetic.shapes import box, rod

_AVENUE = 22.0  # radius of the drone's street
_MIDDLE = np.array([_AVENUE, 0.0])  # of the town, world frame
_RINGS = (7.2, 14.6, _AVENUE, 29.4, 36.8, 44.2)  # radii of the streets
_CROSSING = 0.36  # angle between two cross streets, rad
_TOWN = 52.0  # radius; the plain begins there
_FLIGHT = (0.0, 0.74)  # angles at which the drone's path begins and ends, rad
_SKY = 420.0  # radius of the sky

# Vibration in an exposure, relative to a flight of 1 scene unit: 3 of translation (scene units), 3 of rotation (rad).
_VIBRATION = np.array([0.05, 0.05, 0.05, 0.025, 0.025, 0.04])

_SODIUM = np.array([1.0, 0.6, 0.22], np.float32)
_WHITE = np.array([0.8, 0.93, 1.0], np.float32)


def _place(radius: float, angle: float) -> tuple[float, float]:
    """Returns x and y at a distance from the town's middle; angle 0 is the start of the flight, then clockwise."""
    return _AVENUE - radius * math.cos(angle), radius * math.sin(angle)


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns 1 where a signed distance is positive, else 0, with a soft edge of `width` scene units."""
    return edge(distance * np.float32(0.008 / width))


# --- the ground ------------------------------------------------------------------------------------------------------


def _find_streets(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns radius, angle, and the distances to the axis of the nearest ring and of the nearest cross street."""
    radius, angle = np.hypot(x - _MIDDLE[0], y), np.arctan2(y, _MIDDLE[0] - x)
    ring = np.min([np.abs(radius - r) for r in _RINGS], axis=0)
    cross = np.abs((angle / _CROSSING + 0.5) % 1.0 - 0.5) * _CROSSING * radius
    return radius, angle, ring, cross


def _find_lawns(ring: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Returns True for blocks with a lawn; ring and number of a block count from the inside and from the start."""
    block = 13.0 * ring + number
    return cells(block, 0 * block, 5) < 0.42


def _paint_town(x: np.ndarray, y: np.ndarray, soft: float) -> np.ndarray:
    """Streets with lanes and crossings, pavements, lawns and courts; x and y of the world."""
    radius, angle, ring, cross = _find_streets(x, y)
    half = np.where(np.abs(radius - _AVENUE) < 3, 0.95, 0.7)
    is_lawn = _find_lawns(np.searchsorted(_RINGS, radius), np.floor(angle / _CROSSING))
    ground = np.where(is_lawn[..., None], rgb("#5d8a4a"), rgb("#a39482"))
    shade = 0.55 + 0.9 * noise(2.2 * x, 2.2 * y, seed=1) * noise(0.7 * x, 0.7 * y, seed=2)
    ground = ground * shade[..., None]
    paths = np.minimum(np.abs((x - y) % 5.2 - 2.6), np.abs((x + y) % 5.2 - 2.6)) * 0.7
    ground = mix(ground, rgb("#c9b58f"), is_lawn * _soft(0.17 - paths, soft))
    to_street = np.minimum(ring - half, cross - 0.6)
    slabs = 0.75 + 0.4 * cells(2.4 * x, 2.4 * y, 3)
    ground = mix(ground, rgb("#b9b3a8") * slabs[..., None], _soft(0.42 - to_street, soft))
    tar = rgb("#54545a") * (0.7 + 0.6 * noise(1.3 * x, 1.3 * y, seed=4) * noise(5 * x, 5 * y, seed=6))[..., None]
    ground = mix(ground, tar, _soft(-to_street, soft))
    along_ring, along_cross = angle * radius, radius
    white, dashes = rgb("#f0ece0"), _soft(0.3 - np.abs(along_ring % 1.3 - 0.65), soft)
    ground = mix(ground, white, dashes * _soft(0.05 - ring, soft) * _soft(cross - 1.2, soft))
    ground = mix(ground, white, _soft(0.04 - np.abs(ring - half + 0.12), soft) * _soft(cross - 1.2, soft))
    bars = _soft(0.1 - np.abs(along_cross % 0.4 - 0.2), soft)
    return mix(ground, white, bars * _soft(0.26 - np.abs(cross - 0.98), soft) * _soft(half - ring - 0.1, soft))


def _paint_plain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fields and woods beyond the town."""
    fields = cells(0.045 * x + 0.02 * y, 0.06 * y - 0.012 * x, 8)
    ground = mix(fill("#3e4f33", x), rgb("#6c6a4a"), fields)
    woods = noise(0.035 * x, 0.035 * y, seed=9) - 0.5
    return mix(ground, rgb("#1c2a20"), np.clip(8 * woods, 0, 1))


def _shine_plain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The lights of distant towns and roads, as discs of one or two units."""
    total = np.zeros((*x.shape, 3), np.float32)
    radius = np.hypot(x - _MIDDLE[0], y)
    for period, reach, seed in ((4.0, 0.5, 21), (9.0, 0.8, 25)):
        u, v = x / period, y / period
        offsets = [0.5 + 0.5 * (cells(u, v, seed + i) - 0.5) for i in (1, 2)]
        spot = np.hypot(u % 1 - offsets[0], v % 1 - offsets[1]) * period
        crowd = noise(0.018 * x + 3, 0.018 * y, seed=seed) > 0.42
        is_lit = (cells(u, v, seed) < 0.55) & crowd & (radius > _TOWN + 1)
        color = np.where((cells(u, v, seed + 3) < 0.7)[..., None], _SODIUM, _WHITE)
        total += color * (is_lit * np.exp(-np.square(spot / reach)) * (0.7 + 1.8 * cells(u, v, seed + 3)))[..., None]
    road = np.abs(y - 0.45 * x - 95 - 14 * np.sin(0.02 * x))
    beads = np.exp(-np.square(road / 0.9) - np.square((x % 5.0 - 2.5) / 0.8))
    return total + 2 * _SODIUM * (beads * (radius > _TOWN + 6))[..., None]


def _ground(center: tuple[float, float], half: float, top: float, texels: float, light_detail: float) -> Solid:
    """One square of the ground; a larger one lies lower and has coarser texels."""
    soft = max(0.06, 1.2 / texels)

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face != 5:
            return fill("#000000", x)
        x, y = x + np.float32(center[0]), y + np.float32(center[1])
        in_town = _soft(_TOWN - np.hypot(x - _MIDDLE[0], y), max(soft, 2.0))
        return mix(_paint_plain(x, y), _paint_town(x, y, soft), in_town)

    def shine(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face != 5:
            return fill("#000000", x)
        return _shine_plain(x + np.float32(center[0]), y + np.float32(center[1]))

    place, size = (*center, top - 0.5), (half, half, 0.5)
    hidden = (0, 1, 2, 3, 4)
    return box(
        place,
        size,
        paint,
        emission=shine if top < 0 else None,
        texels=texels,
        light_detail=light_detail,
        hidden_faces=hidden,
        small=True,
    )


# --- the sky ---------------------------------------------------------------------------------------------------------


def _shine_sky(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dark blue, with the glow of cities above the horizon, thin clouds and stars. x and y: longitude, latitude."""
    height = np.clip(y, 0.0, None)
    glow = np.exp(-height / 0.13)
    sky = mix(fill("#0e1838", x), rgb("#3d4b7d"), np.exp(-height / 0.32))
    sky = mix(sky, rgb("#c0754a") * (0.55 + 0.35 * np.sin(x + 2.4))[..., None], 0.55 * glow)
    clouds = noise(4 * x + 30, 26 * y, seed=31) * noise(9 * x + 50, 60 * y, seed=32)
    sky = mix(sky, rgb("#8d6f74"), np.clip(2.2 * clouds - 0.5, 0, 0.45) * np.exp(-np.square((y - 0.16) / 0.12)))
    u, v = 36 * x * np.cos(y), 36 * y
    spot = np.hypot(u % 1 - 0.3 - 0.4 * cells(u, v, 34), v % 1 - 0.3 - 0.4 * cells(u, v, 35))
    stars = np.exp(-np.square(spot / 0.14)) * (cells(u, v, 33) < 0.3) * cells(u, v, 36) ** 2
    return sky + (1.6 * stars * np.clip(3 * height, 0, 1))[..., None] * _WHITE


def _hills() -> list[Solid]:
    """Dark hills on the horizon."""
    solids = []
    for angle, distance, width, height in (
        (0.2, 320, 90, 26), (0.62, 345, 120, 34), (1.1, 310, 80, 22), (1.5, 340, 130, 30), (2.0, 315, 90, 26),
        (-0.3, 340, 110, 30),
    ):  # fmt: skip
        x, y = distance * math.sin(angle), distance * math.cos(angle)
        rotation = make_rotation(np.array([0.0, 0.0, -angle])).astype(np.float32)
        half = np.array([width, 30.0, height], np.float32)
        center, paint = np.array([x, y, 0.0], np.float32), plain("#20283a")
        solids.append(Solid("sphere", center, half, paint, rotation, texels=0.4, light_detail=5e-4))
    return solids


# --- buildings -------------------------------------------------------------------------------------------------------


def _find_windows(x: np.ndarray, y: np.ndarray, period: tuple[float, float], soft: float) -> np.ndarray:
    """Returns 1 in the panes of a facade's windows."""
    across = np.abs(x / period[0] - np.floor(x / period[0]) - 0.5) * period[0]
    up = np.abs(y / period[1] - np.floor(y / period[1]) - 0.5) * period[1]
    return _soft(np.minimum(0.31 * period[0] - across, 0.3 * period[1] - up), soft)


def _building(center: tuple, half: tuple, degrees: float, seed: int, far: bool = False) -> Solid:
    """A box with windows, of which some are lit."""
    key = np.random.default_rng([seed, 40])
    wall = rgb(("#b08a6a", "#9a9aa2", "#c4b193", "#8a5f4f", "#7d8794", "#b9a7a0")[key.integers(6)])
    period = (1.7, 1.9) if far else (key.uniform(0.42, 0.6), key.uniform(0.5, 0.62))
    lit, texels = key.uniform(0.25, 0.5), 4.0 if far else 18.0
    soft, tint = 1.5 / texels, key.uniform(0.35, 0.6)

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face >= 4:
            roof = np.broadcast_to(0.5 * wall, (*x.shape, 3)) * (0.6 + 0.8 * noise(2 * x, 2 * y, seed=seed))[..., None]
            rim = np.minimum(half[0] - np.abs(x), half[1] - np.abs(y))
            roof = mix(roof, rgb("#d5cec0"), _soft(0.16 - rim, 0.06))
            unit = np.maximum(np.abs(x - 0.3 * half[0]) - 0.3, np.abs(y + 0.35 * half[1]) - 0.22)
            return mix(roof, rgb("#d9dde0"), _soft(-unit, 0.06))
        color = np.broadcast_to(wall, (*x.shape, 3)) * (0.8 + 0.3 * noise(3 * x, 3 * y, seed=seed))[..., None]
        return mix(color, rgb("#1d2730"), _find_windows(x, y, period, soft))

    def shine(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face >= 4:
            return fill("#000000", x)
        column, row = x / period[0] + 64 * face, y / period[1]
        value, warmth = cells(column, row, seed), cells(column, row, seed + 1)
        color = np.where((warmth < 0.8)[..., None], np.array([1.0, tint, 0.22]), np.array([0.7, 0.9, 1.0]))
        strength = (value < lit) * (0.35 + 2.2 * warmth**3) * _find_windows(x, y, period, soft)
        return color * strength[..., None]

    options = {"texels": texels, "hidden_faces": (4,), "light_detail": 0.02 if far else 0.08, "small": far}
    return box(center, half, paint, degrees, emission=shine, **options)


def _blocks(key: np.random.Generator) -> list[Solid]:
    """Houses between the streets; blocks with a lawn have few."""
    solids = []
    for ring, (inner, outer) in enumerate(itertools.pairwise(_RINGS), start=1):
        for number in range(-1, 7):
            if ring in (1, 5) and number not in ((2, 3, 4, 5) if ring == 1 else (1, 2)):
                continue
            is_lawn = _find_lawns(np.array([ring]), np.array([number]))[0]
            for side in (0.29, 0.71):
                if is_lawn and key.random() < 0.6:
                    continue
                radius = inner + side * (outer - inner) + key.uniform(-0.1, 0.1)
                angle = _CROSSING * (number + 0.5) + key.uniform(-0.02, 0.02)
                depth, length = key.uniform(0.85, 1.05), min(key.uniform(1.5, 2.6), 0.5 * _CROSSING * radius - 1.3)
                height = key.uniform(0.7, 1.6) if abs(radius - _AVENUE) < 3 else key.uniform(0.8, 2.6)
                if length < 0.7:
                    continue
                center, degrees = (*_place(radius, angle), height), -math.degrees(angle)
                solids.append(_building(center, (depth, length, height), degrees, len(solids) + 100))
    return solids


def _towers(key: np.random.Generator) -> list[Solid]:
    """Tall buildings in the distance, some with a red light on top."""
    solids = []
    for _ in range(26):
        angle, distance = key.uniform(-0.25, 1.9), 1 / key.uniform(1 / 150, 1 / 58)
        half = (key.uniform(2.0, 4.0), key.uniform(2.0, 4.0), key.uniform(3.0, 11.0))
        x, y = 4 + distance * math.sin(angle), 6 + distance * math.cos(angle)
        solids.append(_building((x, y, half[2]), half, key.uniform(0, 90), int(key.integers(1000)) + 400, far=True))
        if half[2] > 7.5:
            solids.append(_glowing_ball((x, y, 2 * half[2] + 0.6), 0.45, np.array([6.0, 0.4, 0.25])))
    return solids


# --- lights, cars and trees ------------------------------------------------------------------------------------------


def _glowing_ball(center: tuple, radius: float, radiance: np.ndarray) -> Solid:
    def shine(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.broadcast_to(radiance.astype(np.float32), (*x.shape, 3))

    half = np.full(3, radius, np.float32)
    return Solid(
        "sphere",
        np.array(center, np.float32),
        half,
        plain("#404040"),
        texels=0.1,
        small=True,
        light_detail=0.01,
        emission=shine,
    )


def _find_lamp_places() -> list[tuple[float, float, np.ndarray]]:
    """Returns x, y and colour of the street lamps: both sides of the avenue, and the corners of the next streets."""
    places = []
    for i in range(-2, 12):
        side = 1.22 if i % 2 else -1.22
        places.append((*_place(_AVENUE + side, 0.5 * _CROSSING * (i + 0.5)), _SODIUM))
    for ring in (_RINGS[1], _RINGS[3]):
        places += [(*_place(ring + 0.95, _CROSSING * (i + 0.22)), _WHITE) for i in range(7)]
    places += [(*_place(_RINGS[4] + 0.95, _CROSSING * (i + 0.22)), _SODIUM) for i in range(5)]
    return places


def _street_lamps() -> tuple[list[Solid], tuple[Lamp, ...]]:
    """Poles with a ball of light; the light starts below the ball, which would shade it."""
    solids, lamps = [], []
    for x, y, color in _find_lamp_places():
        pole = rod((x, y, 0.0), (x, y, 1.5), 0.035, plain("#3a3d42"))
        solids.append(dataclasses.replace(pole, small=True, texels=20.0, light_detail=0.5))
        solids.append(_glowing_ball((x, y, 1.62), 0.13, 9.0 * color))
        place = np.array([x, y, 1.42], np.float32)
        lamps.append(Lamp(place, radius=0.04, power=4.2 * color, reach=6.5))
    return solids, tuple(lamps)


def _car(radius: float, angle: float, towards: bool, code: str) -> Solid:
    """A car on a ring; its lights face along the street."""

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        window = _soft(0.15 - np.abs(np.abs(y) - 0.17), 0.05) if face == 5 else _soft(y + 0.0, 0.05)
        return mix(fill(code, x), rgb("#15181c"), 0.8 * window)

    def shine(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face not in (2, 3):
            return fill("#000000", x)
        pair = _soft(0.07 - np.hypot(np.abs(x) - 0.15, y + 0.03), 0.04)
        color = np.array([7.0, 6.6, 5.6]) if (face == 3) == towards else np.array([3.0, 0.12, 0.06])
        return color * pair[..., None]

    x, y = _place(radius, angle)
    return box((x, y, 0.2), (0.26, 0.55, 0.17), paint, -math.degrees(angle), emission=shine, texels=40.0, small=True)


def _cars() -> list[Solid]:
    codes = ("#b03a3a", "#d8d8d4", "#3a5f8f", "#c9a23a", "#6d7278", "#8fb0a4")
    places = [(0.11, 0), (0.29, 1), (0.44, 0), (0.53, 1), (0.8, 0), (0.88, 1), (1.0, 0), (1.24, 1), (1.4, 0)]
    return [
        _car(_AVENUE + (0.45 if back else -0.45), angle, not back, codes[i % 6])
        for i, (angle, back) in enumerate(places)
    ]


def _crown(center: tuple, size: float, seed: int) -> Solid:
    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        clumps = noise(5 * x + 20, 6 * y + 20, seed=seed)
        return mix(fill("#27421f", x), rgb("#86a04c"), np.clip(2.4 * clumps - 0.7, 0, 1))

    half = np.array([size, size, 1.1 * size], np.float32)
    return Solid("sphere", np.array(center, np.float32), half, paint, texels=14.0, small=True, light_detail=0.35)


def _trees(key: np.random.Generator) -> list[Solid]:
    """Along the avenue between the lamps, and in the other streets."""
    solids = []
    for i in range(-2, 12):
        side = -1.25 if i % 2 else 1.25
        x, y = _place(_AVENUE + side, 0.5 * _CROSSING * (i + 0.5) + key.uniform(-0.01, 0.01))
        size = key.uniform(0.36, 0.5)
        trunk = dataclasses.replace(rod((x, y, 0), (x, y, 0.8), 0.06, plain("#3f3024")), small=True, texels=20.0)
        solids += [trunk, _crown((x, y, 0.95 + size), size, 60 + i)]
    for i in range(20):
        ring, number = key.choice(_RINGS[1:5]), key.uniform(0, 6)
        x, y = _place(float(ring) - 1.15, _CROSSING * (number - (number % 1) + 0.2 + 0.6 * (number % 1)))
        size = key.uniform(0.4, 0.62)
        solids.append(_crown((x, y, 0.5 + size), size, 90 + i))
    return solids


@functools.cache
def build_flight() -> World:
    """Paints and lights the world. Later calls return the same object."""
    key = np.random.default_rng(17)
    lamps, lights = _street_lamps()
    black, middle = plain("#000000"), np.array([20.0, 20.0, 0.0], np.float32)
    sky_half = np.full(3, _SKY, np.float32)
    solids = [
        Solid("sphere", middle, sky_half, black, hollow=True, texels=0.3, light_detail=1e-3, emission=_shine_sky),
        _ground((20.0, 20.0), 415.0, -0.1, 0.9, 0.003),
        _ground((18.0, 22.0), 54.0, -0.04, 6.0, 0.07),
        _ground((5.0, 12.5), 16.0, 0.0, 18.0, 0.25),
        *_hills(),
        *_towers(key),
        *_blocks(key),
        *lamps,
        *_cars(),
        *_trees(key),
    ]
    moon = Light(
        center=np.array([-150.0, -120.0, 230.0], np.float32),
        radius=3.0,
        power=5200.0 * np.array([0.55, 0.72, 1.0], np.float32),
        ambient=0.06 * np.array([0.55, 0.72, 1.0], np.float32),
    )
    return make_world(tuple(solids), moon, lights)


# --- cameras ---------------------------------------------------------------------------------------------------------


def _place_camera(index: float, num: int, key: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Places a camera on the drone's path above the avenue; the drone dips, climbs, and lifts its view to the horizon."""
    place = index / (num - 1)
    angle = _FLIGHT[0] + (_FLIGHT[1] - _FLIGHT[0]) * place + key.uniform(-0.004, 0.004)
    height = 5.7 + 0.8 * math.sin(7.0 * place + 0.6) + key.uniform(-0.12, 0.12)
    radius = _AVENUE + 0.9 * math.sin(9.0 * place) + key.uniform(-0.15, 0.15)
    center = np.array([*_place(radius, angle), height])
    pitch = math.radians(22.5 + 9 * math.cos(10.0 * place) + key.uniform(-0.8, 0.8))
    heading = angle + 0.18 + math.radians(key.uniform(-2.0, 2.0))  # looks into the bend
    ahead = np.array([math.sin(heading), math.cos(heading), -math.tan(pitch)])
    return center, center + 8 * ahead, math.radians(4 * math.sin(8.0 * place) + key.uniform(-1.0, 1.0))


def _draw_motion(viewmat: np.ndarray, key: np.random.Generator) -> np.ndarray:
    """Draws the camera's path in an exposure: the flight along the track, and vibration of the drone."""
    rotation = viewmat[:3, :3].astype(float)
    turn = 0.18 + 0.1 * key.normal()  # the camera looks into the bend
    ahead = make_rotation(np.array([0.0, 0.0, turn])) @ (rotation[2] * [1, 1, 0])
    velocity = ahead / np.linalg.norm(ahead) + [0, 0, 0.1 * key.normal()]
    motion = key.normal(size=(3, 6)) * _VIBRATION * np.array([[1.0], [0.8], [2.0]])
    motion[0, :3] -= rotation @ velocity  # the world passes by the other way
    return motion


LAYOUT = Layout(
    make_world=build_flight,
    place_camera=_place_camera,
    focal=0.9,
    aperture=0.25,
    focus_depths=(5.0, 9.0, 30.0),
    point_noise=0.01,
    grows_with_depth=True,
    farthest_point=200.0,
    draw_motion=_draw_motion,
    sensor=Sensor(full_well=1500.0, read_noise=5.0),
)
