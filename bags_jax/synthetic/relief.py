"""A world of the embedded scenes: an ivy-grown garden wall with a gate, from the front (own design, no files needed).

Scene units: the wall stands at y = 0. Flowers before it begin at y = -1.7; the hills behind its gate are painted at
y = 3.4. The finest painted details are about 0.1 in front and 0.15 on the wall: 4 px at width 128. Twigs and stems are
1 to 2 px wide. World frame: z up, the ground at z = 0, the cameras on a grid at y = -3.55, all facing +y.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np

from bags_jax.synthetic.bake import Light, make_world
from bags_jax.synthetic.layout import Layout
from bags_jax.synthetic.paint import cells, edge, fill, mix, noise, plain, rgb, stripe
from bags_jax.synthetic.raycast import Painter, Solid, World
from bags_jax.synthetic.shapes import ball, box, leaf, rod

_GRID_COLUMNS, _GRID_SIZE = 6, (1.5, 0.75)  # cameras in a row; width and height of their grid, scene units
_GREENS = ("#2f6b35", "#4d8f3c", "#6fae4a", "#3a7d5a", "#8abf5c", "#a8452f")  # the last: autumn


# --- painting --------------------------------------------------------------------------------------------------------


def _outside(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Hills and sky all around, grass below: visible through the gate."""
    if face == 4:
        return mix(fill("#6f9c46", x), rgb("#a9c064"), np.round(noise(4 * x + 40, 4 * y + 40, seed=2)))
    if face == 5:
        return fill("#9cc7ea", x)
    z = y + 2.0
    color = mix(fill("#f3e4c0", x), rgb("#6fa8dc"), np.clip(0.62 * z - 0.7, 0, 1))
    cloud = noise(1.3 * x + 30, 2.6 * z + 7, seed=5) + 0.5 * noise(2.6 * x + 30, 5.2 * z + 7, seed=6)
    color = mix(color, rgb("#fdfaf2"), edge(0.1 * (cloud - 0.86)) * edge(z - 1.6))
    color = mix(color, rgb("#7d93b8"), edge(1.75 + 0.25 * np.sin(1.9 * x + 0.6) + 0.08 * np.sin(5.3 * x) - z))
    color = mix(color, rgb("#4f7d54"), edge(1.3 + 0.2 * np.sin(2.4 * x + 2) + 0.06 * np.sin(7.1 * x) - z))
    field = (x + 1.5 * z + 0.4 * np.sin(2 * x)) % 0.5 - 0.25
    color = mix(color, rgb("#d9b24c"), edge(0.9 + 0.1 * np.sin(1.7 * x) - z))
    return mix(color, rgb("#b48a35"), edge(0.07 - np.abs(field)) * edge(0.9 + 0.1 * np.sin(1.7 * x) - z))


def _stones(offset_x: float, offset_z: float) -> Painter:
    """Rough ashlar in courses. The offsets are the solid's centre, so that courses continue from solid to solid."""

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = x + offset_x + 20, y + offset_z + 20
        row = np.floor(v / 0.3)
        along = u / 0.62 + 0.37 * row + 0.25 * cells(row, row, 9)
        shade = 0.7 * cells(along, v / 0.3, 6) + 0.6 * (noise(5 * u, 5 * v, seed=8) - 0.5)
        stone = mix(fill("#8d7458", x), rgb("#e0c59a"), np.clip(shade, 0, 1))
        stone = mix(stone, rgb("#a5604a"), 0.8 * np.round(0.62 * cells(along, v / 0.3 + 31, 7)))
        gap = np.minimum(0.31 - np.abs(along % 1.0 - 0.5) * 0.62, 0.15 - np.abs((v / 0.3) % 1.0 - 0.5) * 0.3)
        moss = edge(0.1 * (noise(2.2 * u + 11, 2.2 * v, seed=14) - 0.66))
        return mix(mix(stone, rgb("#57483b"), edge(0.03 - gap)), rgb("#6d8a45"), 0.75 * moss)

    return paint


def _leaf_paint(code: str) -> Painter:
    """Two halves along a midrib."""
    dark, light = rgb(code) * 0.72, np.clip(rgb(code) * 1.25, 0, 1)

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        across = np.sin(x) * np.cos(y)
        color = mix(np.broadcast_to(dark, (*x.shape, 3)), light, edge(0.1 * across))
        return mix(color, rgb("#dfe8a8"), edge(0.1 * (0.16 - np.abs(across))))

    return paint


def _petal_paint(code: str) -> Painter:
    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return mix(fill(code, x), rgb("#fff3d6"), edge(0.1 * (-0.35 - np.sin(y))))

    return paint


def _pot_paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if face != 0:
        return fill("#5b3d28", x)
    zigzag = np.abs((x * 8 / (2 * math.pi)) % 1.0 - 0.5) * 0.24 - 0.06
    return mix(fill("#c96f43", x), rgb("#f2dcb2"), edge(0.045 - np.abs(y - zigzag)))


def _shutter(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    border = np.minimum(0.26 - np.abs(x), 0.42 - np.abs(y))
    color = mix(fill("#2f6f8a", x), rgb("#6fb1c4"), stripe(y, 0.2, 0.1))
    return mix(color, rgb("#1f4d63"), edge(0.07 - border))


def _tiles(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return mix(fill("#b6542f", x), rgb("#e08f5c"), stripe(x, 0.3, 0.15))


def _plaque(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A sun."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    color = mix(fill("#22557f", x), rgb("#f2c445"), edge(0.1 * np.sin(8 * angle)) * edge(0.27 - radius))
    color = mix(color, rgb("#f2c445"), edge(0.14 - radius))
    return mix(color, rgb("#f7efe0"), edge(0.05 - np.abs(radius - 0.32)))


# --- solids ----------------------------------------------------------------------------------------------------------


def _wall() -> list[Solid]:
    """Two piers and a lintel around the gate, a coping of tiles, shutters and a plaque."""
    parts = (
        ((-1.95, 0.15, 1.2), (1.6, 0.15, 1.2)),
        ((2.05, 0.15, 1.2), (1.5, 0.15, 1.2)),
        ((0.1, 0.15, 2.1), (0.45, 0.15, 0.3)),
    )
    solids = [
        box(center, half, _stones(center[0], center[2]), texels=100.0, hidden_faces=(3, 4, 5)) for center, half in parts
    ]
    return [
        *solids,
        box((0.0, 0.12, 2.46), (3.6, 0.26, 0.07), _tiles, texels=100.0, hidden_faces=(3, 5)),
        box((1.62, -0.03, 1.5), (0.26, 0.03, 0.42), _shutter),
        box((2.18, -0.03, 1.5), (0.26, 0.03, 0.42), _shutter),
        rod((-0.85, -0.05, 1.6), (-0.85, 0.0, 1.6), 0.38, _plaque),
    ]


def _behind() -> list[Solid]:
    """Trees in the garden beyond the gate."""
    bark = plain("#6b4a2f")
    solids = []
    for x, y, height, radius, code in ((-0.35, 2.3, 1.3, 0.45, "#5f9a45"), (0.75, 1.5, 1.05, 0.33, "#c98a3a")):
        solids += [
            rod((x, y, 0), (x, y, height), 0.07, bark),
            ball((x, y, height + 0.6 * radius), radius, _foliage(code)),
        ]
    return solids


def _foliage(code: str) -> Painter:
    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return mix(fill(code, x), rgb("#2c5230"), edge(0.1 * np.sin(5 * x + 2 * np.sin(3 * y)) * np.cos(6 * y)))

    return paint


def _lattice() -> list[Solid]:
    """A white trellis before the left pier."""
    white = plain("#efe9da")
    solids = [rod((x, -0.55, 0), (x, -0.55, 2.15), 0.03, white) for x in (-2.3, -1.85, -1.4, -0.95)]
    return solids + [rod((-2.5, -0.5, z), (-0.75, -0.5, z), 0.03, white) for z in (0.35, 0.8, 1.25, 1.7, 2.1)]


def _small_rod(start: tuple | np.ndarray, end: tuple | np.ndarray, radius: float, code: str) -> Solid:
    return dataclasses.replace(rod(tuple(start), tuple(end), radius, plain(code)), small=True)


def _vine(start: tuple, end: tuple, num: int, key: np.random.Generator, sway: float) -> list[Solid]:
    """A twig that winds from start to end, with leaves left and right."""
    ts = np.linspace(0, 1, num)
    path = np.outer(1 - ts, start) + np.outer(ts, end)
    path += np.stack(
        [sway * np.sin(7 * ts + key.uniform(0, 6)), 0.03 * np.sin(11 * ts), 0.3 * sway * np.sin(9 * ts)], axis=1
    )
    joints = path[np.unique([*range(0, num, 2), num - 1])]
    solids = [_small_rod(a, b, 0.018, "#6b4a2f") for a, b in itertools.pairwise(joints)]
    for i, spot in enumerate(path[1:]):
        side = 1.0 if i % 2 else -1.0
        size = key.uniform(0.85, 1.25)
        tip = (side * key.uniform(0.5, 1.0), key.uniform(-0.5, 0.0), key.uniform(-0.5, 0.7))
        facing = (key.normal() * 0.35, -1.0, key.uniform(0.0, 0.7))
        center = tuple(spot + 0.13 * size * np.array(tip) / np.linalg.norm(tip) + [0, -0.04, 0])
        paint = _leaf_paint(_GREENS[key.choice(6, p=(0.2, 0.24, 0.2, 0.15, 0.13, 0.08))])
        solids.append(leaf(center, (0.085 * size, 0.018, 0.14 * size), tip, facing, paint, small=True))
    return solids


def _flower(x: float, y: float, height: float, code: str, key: np.random.Generator) -> list[Solid]:
    """A stem with two leaves and a head of petals that leans to the cameras."""
    top = np.array([x + key.uniform(-0.08, 0.08), y - 0.05, height])
    solids = [_small_rod((x, y, 0), top, 0.02, "#4f8a3a")]
    for side in (-1.0, 1.0):
        z = height * key.uniform(0.4, 0.75)
        tip = (side, -0.2, 0.7)
        center = (x + side * 0.12, y - 0.04, z + 0.09)
        solids.append(leaf(center, (0.06, 0.016, 0.17), tip, (0, -1, 0.4), _leaf_paint("#5fa043"), small=True))
    turn = key.uniform(0, 6)
    for i in range(5):
        angle = turn + i * 2 * math.pi / 5
        tip = (math.cos(angle), -0.15, math.sin(angle))
        petal = _petal_paint(code)
        solids.append(
            leaf(tuple(top + 0.1 * np.array(tip)), (0.065, 0.025, 0.09), tip, (0, -1, 0.2), petal, small=True)
        )
    return [*solids, ball(tuple(top + [0, -0.04, 0]), 0.055, plain("#f0b52c"))]


def _pots(key: np.random.Generator) -> list[Solid]:
    """In front: three pots with flowers, at different depths."""
    solids = []
    for x, y, codes in (
        (-1.0, -1.6, ("#e5484d", "#f4f0e4")),
        (0.95, -1.25, ("#e879a8", "#f2b632", "#8e5bb5")),
        (2.0, -0.75, ("#f2b632", "#e5484d")),
    ):
        solids.append(rod((x, y, 0), (x, y, 0.42), 0.26, _pot_paint))
        for i, code in enumerate(codes):
            spot = x + 0.34 * (i - (len(codes) - 1) / 2)
            solids += _flower(spot, y + 0.1 * (i % 2), key.uniform(0.85, 1.25), code, key)
    return solids


@functools.cache
def build_relief() -> World:
    """Paints and lights the world. Later calls return the same object."""
    key = np.random.default_rng(7)
    solids = [
        box((0, -1.6, 2.0), (5.0, 5.0, 2.0), _outside, hollow=True, texels=60.0, hidden_faces=(0, 1, 2, 5)),
        *_wall(),
        *_behind(),
        *_lattice(),
        *_vine((-2.3, -0.6, 0.1), (-1.3, -0.6, 2.2), 13, key, 0.22),
        *_vine((-1.0, -0.6, 0.1), (-2.2, -0.6, 2.0), 13, key, 0.18),
        *_vine((-1.9, -0.62, 0.0), (-1.75, -0.62, 2.2), 11, key, 0.12),
        *_vine((0.75, -0.08, 0.2), (1.0, -0.08, 2.4), 11, key, 0.15),
        *_vine((3.0, -0.08, 2.3), (0.9, -0.1, 2.15), 12, key, 0.1),
        *_vine((1.35, -0.08, 0.1), (1.2, -0.1, 2.2), 9, key, 0.16),
        *_vine((-0.2, -0.12, 2.3), (-0.45, -0.12, 1.1), 7, key, 0.08),
        *_pots(key),
    ]
    light = Light(
        center=np.array([-2.4, -5.0, 3.7], np.float32),
        radius=0.35,
        power=23.0 * np.array([1.0, 0.95, 0.84], np.float32),
        ambient=0.36 * np.array([0.82, 0.92, 1.0], np.float32),
    )
    return make_world(tuple(solids), light)


# --- cameras ---------------------------------------------------------------------------------------------------------


def _find_grid_place(index: int, num: int) -> np.ndarray:
    """Returns the place (right, up) of a training camera on the grid, in [-0.5, 0.5]: row by row, to and fro."""
    columns = min(_GRID_COLUMNS, num)
    rows = math.ceil(num / columns)
    row, column = divmod(index, columns)
    column = column if row % 2 == 0 else columns - 1 - column
    return np.array([column / max(columns - 1, 1), (row + 0.5) / rows]) - 0.5


def _place_camera(index: float, num: int, key: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Places a camera on a grid before the wall, facing the wall."""
    corners = _find_grid_place(math.floor(index), num), _find_grid_place(math.ceil(index), num)
    right, up = (corners[0] + corners[1]) / 2 * _GRID_SIZE
    center = np.array([0.1 + right, -3.55, 1.2 + up]) + key.uniform(-0.06, 0.06, 3)
    target = np.array([0.1 + 0.55 * right, 0.0, 1.12 + 0.5 * up]) + key.uniform(-0.08, 0.08, 3)
    return center, target, math.radians(key.uniform(-1.5, 1.5))


LAYOUT = Layout(
    make_world=build_relief,
    place_camera=_place_camera,
    focal=0.9,
    aperture=0.18,
    focus_depths=(2.1, 3.3, 6.0),
    point_noise=0.025,
)
