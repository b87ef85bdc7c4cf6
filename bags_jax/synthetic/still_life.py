"""A world of the embedded scenes: a playroom of painted solids (own design, no files needed).

Scene units: the room is 6.8 wide. The finest painted details are about 0.12 near the cameras and 0.18 on the walls:
4 px at width 128. World frame: z up, the floor at z = 0, the back wall at y = 2.3, the cameras at negative y.
"""

import functools
import math

import numpy as np

from bags_jax.synthetic.bake import Light, make_world
from bags_jax.synthetic.layout import Layout
from bags_jax.synthetic.paint import cells, edge, fill, mix, noise, plain, rgb, stripe, text
from bags_jax.synthetic.raycast import Painter, Solid, World
from bags_jax.synthetic.shapes import ball, box, rod

_TARGET = np.array([0.0, 0.1, 0.78])  # of the cameras, world frame
_ARC_DEGREES = 64.0  # angle between the outermost training cameras


# --- painting --------------------------------------------------------------------------------------------------------


def _room(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Walls with paper above boards, a brick wall on the left, and a tiled floor."""
    if face == 4:
        return _floor(x, -y)
    if face == 5 or face == 2:
        return fill("#e9e4da", x)
    z = y + 1.7
    if face == 0:
        return _bricks(x, z)
    paper, ornament = (rgb("#2b6f77"), rgb("#7fb5ad")) if face == 3 else (rgb("#d9a441"), rgb("#f0d79a"))
    row = np.floor(z / 0.36)
    column = (x / 0.42 + 0.5 * row) % 1.0 - 0.5
    diamond = np.abs(column * 0.42) + np.abs((z / 0.36) % 1.0 - 0.5) * 0.36
    upper = mix(np.broadcast_to(paper, (*x.shape, 3)), ornament, edge(0.1 - diamond))
    boards = mix(fill("#f1ead9", x), rgb("#b9ab90"), stripe(x, 0.4, 0.07))
    wall = mix(upper, boards, edge(0.62 - z))
    wall = mix(wall, rgb("#8a4b2d"), edge(0.055 - np.abs(z - 0.64)))
    return mix(wall, rgb("#8a4b2d"), edge(0.14 - z))


def _bricks(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    row = np.floor(z / 0.25)
    along = x / 0.56 + 0.5 * (row % 2)
    shade = cells(along, z / 0.25, 3)
    brick = mix(fill("#8f3f2e", x), rgb("#d88a5f"), shade)
    gap = np.minimum(0.28 - np.abs(along % 1.0 - 0.5) * 0.56, 0.125 - np.abs((z / 0.25) % 1.0 - 0.5) * 0.25)
    return mix(brick, rgb("#dccdb8"), edge(0.028 - gap))


def _floor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tiles in the room's coordinates, with a round rug below the globe."""
    tile = (np.floor(x / 0.5) + np.floor(y / 0.5)) % 2
    shade = (0.85 + 0.15 * cells(x / 0.5, y / 0.5, 5))[..., None]
    floor = mix(fill("#efe3cb", x), rgb("#b8805a"), tile) * shade
    u, v = x + 0.05, y - 0.95  # the room's middle lies at y = -1.1 of the world
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    rug = fill("#24406e", x)
    rug = mix(rug, rgb("#e8b04a"), edge(0.07 - np.abs(radius - 1.33)))
    wave = radius - 1.06 - 0.09 * np.sign(np.sin(14 * angle)) * np.abs(np.sin(14 * angle))
    rug = mix(rug, rgb("#f3e9d2"), edge(0.06 - np.abs(wave)))
    rug = mix(rug, rgb("#c8473a"), edge(0.8 - radius))
    dot = np.hypot(radius - 0.6, 0.6 * ((angle / (math.pi / 6)) % 1.0 - 0.5) * (math.pi / 6))
    rug = mix(rug, rgb("#f3d9a0"), edge(0.075 - dot))
    return mix(floor, rug, edge(1.45 - radius))


def _land(*coordinates: np.ndarray, seed: int) -> np.ndarray:
    """Returns a height field in about [-0.5, 0.5]."""
    return (
        noise(*coordinates, seed=seed)
        + 0.5 * noise(*(2.1 * c for c in coordinates), seed=seed + 1)
        + 0.2 * noise(*(4.3 * c for c in coordinates), seed=seed + 2)
    ) / 1.7 - 0.5


def _atlas_colors(height: np.ndarray, scale: float) -> np.ndarray:
    """Colours sea, coast, lowland and highland by height."""
    color = mix(fill("#3f8fc4", height), rgb("#8cc7de"), edge(scale * (height + 0.06)))
    color = mix(color, rgb("#8fb65a"), edge(scale * height))
    color = mix(color, rgb("#e3c878"), edge(scale * (height - 0.09)))
    return mix(color, rgb("#a9683c"), edge(scale * (height - 0.17)))


def _globe(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    spot = np.sin(x) * np.cos(y), -np.cos(x) * np.cos(y), np.sin(y)
    color = _atlas_colors(_land(*(1.7 * c + 7 for c in spot), seed=21), 0.8)
    return mix(color, rgb("#f6f1e4"), 0.6 * stripe(y * 0.5, math.pi / 12, 0.02))


def _poster(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A framed map."""
    if face != 2:
        return fill("#4a2c1d", x)
    color = _atlas_colors(_land(1.5 * x + 3, 1.5 * y + 9, seed=33), 0.7)
    color = mix(color, rgb("#f7f3e6"), 0.55 * np.maximum(stripe(x, 0.5, 0.035), stripe(y, 0.5, 0.035)))
    route = y - 0.25 * np.sin(2.6 * x) - 0.08
    color = mix(color, rgb("#d8322b"), edge(0.035 - np.abs(route)) * edge(0.72 - np.abs(x)))
    for mark in (-0.72, 0.72):
        color = mix(color, rgb("#d8322b"), edge(0.09 - np.hypot(x - mark, y - 0.25 * math.sin(2.6 * mark) - 0.08)))
    border = np.minimum(1.02 - np.abs(x), 0.66 - np.abs(y))
    color = mix(color, rgb("#f7f3e6"), edge(0.15 - border))
    return mix(color, rgb("#4a2c1d"), edge(0.08 - border))


def _sign(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    board = fill("#f4efe2", x)
    if face != 2:
        return board
    board = mix(board, rgb("#c8473a"), edge(0.09 - np.minimum(0.98 - np.abs(x), 0.37 - np.abs(y))))
    return mix(board, rgb("#22252b"), text("BAGS", x, y, 0.42, 1.6))


def _toy_block(letter: str, code: str) -> Painter:
    """A cube with a letter on its sides and a frame along its edges."""

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        half = 0.25
        color = fill("#f7ecd0", x)
        color = mix(color, rgb(code), edge(0.055 - (half - np.maximum(np.abs(x), np.abs(y)))))
        return mix(color, rgb(code), text(letter, x, y, 0.29, 0.3))

    return paint


def _beach_ball(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    colors = np.stack(
        [rgb(c) for c in ("#e5413a", "#fbf6ea", "#f2b632", "#fbf6ea", "#2f7fc1", "#fbf6ea", "#3f9a5a", "#fbf6ea")]
    )
    sectors = colors[np.floor((x / (2 * math.pi) + 0.5) * 8).astype(int) % 8]
    return mix(sectors, rgb("#fbf6ea"), edge(0.3 * (np.abs(y) - 1.25)))


def _checked_ball(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    check = np.sin(4 * x) * np.sin(5 * y)
    return mix(fill("#f6f1e4", x), rgb("#6a3d8f"), edge(0.06 * check))


def _crate(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Planks with a frame and a diagonal brace."""
    half = 0.45
    shade = (0.75 + 0.35 * cells(x * 0 + face, (y + half) / 0.18, 8))[..., None]
    wood = fill("#b98a52", x) * shade
    wood = mix(wood, rgb("#6b4423"), stripe(y + half, 0.18, 0.03))
    frame = edge(0.11 - (half - np.maximum(np.abs(x), np.abs(y))))
    brace = edge(0.065 - np.abs(x - y) / math.sqrt(2))
    return mix(mix(wood, rgb("#8a5a2e"), brace), rgb("#7a4c26"), frame)


def _barber_pole(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    turn = y - 0.36 * x / (2 * math.pi)
    color = mix(fill("#f8f4ea", x), rgb("#cf2f36"), stripe(turn, 0.36, 0.14))
    return color if face == 0 else fill("#d9a441", x)


def _plinth(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = fill("#f2ead8", x)
    if face != 0:
        return base
    return mix(base, rgb("#2f7fc1"), stripe(x * 0.42, 2 * math.pi * 0.42 / 16, 0.08))


# --- solids ----------------------------------------------------------------------------------------------------------


def _flowers(x: float, y: float) -> list[Solid]:
    """A pot with thin stems: the scene's finest geometry."""
    solids = [
        rod((x, y, 0), (x, y, 0.34), 0.2, plain("#c0623c")),
        rod((x, y, 0.34), (x, y, 0.42), 0.24, plain("#d97b50")),
    ]
    heads = [
        (-0.34, -0.05, 1.05, "#f2b632"),
        (-0.1, 0.12, 1.32, "#e5413a"),
        (0.12, -0.12, 1.12, "#f6f1e4"),
        (0.36, 0.04, 0.95, "#e77fae"),
    ]
    for dx, dy, height, code in heads:
        tip = (x + dx, y + dy, height)
        solids.append(rod((x + 0.25 * dx, y + 0.25 * dy, 0.4), tip, 0.03, plain("#4f9a4a")))
        solids.append(ball(tip, 0.11, plain(code)))
    return solids


def _mobile(x: float, y: float) -> list[Solid]:
    """Balls on strings below a bar that hangs from the ceiling."""
    dark = plain("#3a2b22")
    solids = [rod((x - 0.6, y, 2.05), (x + 0.6, y, 2.05), 0.03, dark), rod((x, y, 2.05), (x, y, 3.4), 0.025, dark)]
    for dx, height, radius, paint in (
        (-0.55, 1.55, 0.13, plain("#e5413a")),
        (0.0, 1.78, 0.1, plain("#f2b632")),
        (0.55, 1.62, 0.15, _checked_ball),
    ):
        solids.append(rod((x + dx, y, height), (x + dx, y, 2.05), 0.02, dark))
        solids.append(ball((x + dx, y, height), radius, paint))
    return solids


@functools.cache
def build_still_life() -> World:
    """Paints and lights the world (2 to 3 s). Later calls return the same object."""
    solids = [
        box((0, -1.1, 1.7), (3.4, 3.4, 1.7), _room, hollow=True, texels=100.0, hidden_faces=(2, 5)),
        box((-1.3, 2.26, 1.5), (1.02, 0.04, 0.66), _poster),
        box((0.95, 2.26, 1.72), (0.98, 0.04, 0.37), _sign),
        rod((0, 0.55, 0), (0, 0.55, 0.38), 0.42, _plinth),
        ball((0, 0.55, 0.9), 0.52, _globe, 20.0),
        box((-1.45, 0.9, 0.45), (0.45, 0.45, 0.45), _crate, 24.0),
        ball((-1.4, 0.85, 1.16), 0.26, _checked_ball, 10.0),
        rod((1.9, 1.35, 0), (1.9, 1.35, 1.8), 0.15, _barber_pole),
        ball((1.9, 1.35, 1.92), 0.2, plain("#e8b04a")),
        ball((0.72, -0.55, 0.34), 0.34, _beach_ball, 62.0),
        box((-1.1, -0.5, 0.25), (0.25, 0.25, 0.25), _toy_block("A", "#c8372f"), 14.0),
        box((-0.5, -0.62, 0.25), (0.25, 0.25, 0.25), _toy_block("X", "#1f6fb2"), -8.0),
        box((-0.82, -0.56, 0.75), (0.25, 0.25, 0.25), _toy_block("J", "#2f8a4c"), 5.0),
        *_flowers(1.4, 0.25),
        *_mobile(-0.55, 0.9),
    ]
    light = Light(
        center=np.array([-1.9, -2.6, 3.1], np.float32),
        radius=0.3,
        power=11.5 * np.array([1.0, 0.93, 0.8], np.float32),
        ambient=0.3 * np.array([0.8, 0.9, 1.0], np.float32),
    )
    return make_world(tuple(solids), light)


# --- cameras ---------------------------------------------------------------------------------------------------------


def _place_camera(index: float, num: int, key: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Places a camera on an arc around the globe."""
    angle = math.radians(_ARC_DEGREES) * (index / (num - 1) - 0.5)
    distance, height = 3.7 + key.uniform(-0.15, 0.15), 1.45 + key.uniform(-0.25, 0.25)
    center = np.array([_TARGET[0] + distance * math.sin(angle), _TARGET[1] - distance * math.cos(angle), height])
    target = _TARGET + key.uniform(-0.08, 0.08, 3)
    return center, target, math.radians(key.uniform(-1.5, 1.5))


LAYOUT = Layout(
    make_world=build_still_life,
    place_camera=_place_camera,
    focal=0.94,
    aperture=0.18,
    focus_depths=(2.5, 3.7, 6.0),
    point_noise=0.025,
)
