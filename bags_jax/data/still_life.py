"""The embedded scene's world: a playroom of painted solids (own design, no files needed).

Units: the room is 6.8 wide; the finest painted details are about 0.12 near the cameras and 0.18 on the walls, which is
4 px at width 128. World frame: z up, the floor at z = 0, the back wall at y = 2.3, the cameras at negative y.
"""

import functools
import itertools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bags_jax.data.raycast import Light, Painter, Solid, World, make_world

_SOFT = 0.008  # width of painted edges, scene units


def _rgb(code: str) -> np.ndarray:
    """'#rrggbb' (sRGB) as linear light."""
    value = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


# --- painting --------------------------------------------------------------------------------------------------------


def _edge(distance: np.ndarray) -> np.ndarray:
    """1 where a signed distance (scene units) is positive, with a soft edge."""
    return np.clip(distance / _SOFT + 0.5, 0.0, 1.0)


def _mix(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return under + (over - under) * cover[..., None]


def _noise(*coordinates: np.ndarray, seed: int = 0) -> np.ndarray:
    """Smooth value noise in [0, 1] on the unit lattice, in 2 or 3 dimensions."""
    table = np.random.default_rng(seed).random((64,) * len(coordinates), np.float32)
    cells = [np.floor(c).astype(int) for c in coordinates]
    ramps = [(c - cell) ** 2 * (3 - 2 * (c - cell)) for c, cell in zip(coordinates, cells, strict=True)]
    total = np.zeros(coordinates[0].shape, np.float32)
    for corner in itertools.product((0, 1), repeat=len(coordinates)):
        weight = np.ones(coordinates[0].shape, np.float32)
        for step, ramp in zip(corner, ramps, strict=True):
            weight = weight * (ramp if step else 1 - ramp)
        total += weight * table[tuple((cell + step) % 64 for cell, step in zip(cells, corner, strict=True))]
    return total


def _cells(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """A random value in [0, 1] for each unit cell."""
    table = np.random.default_rng(seed).random((64, 64), np.float32)
    return table[np.floor(x).astype(int) % 64, np.floor(y).astype(int) % 64]


def _stripe(position: np.ndarray, period: float, width: float) -> np.ndarray:
    """1 within stripes of `width`, one every `period`; the first is centred at 0."""
    return _edge(width / 2 - np.abs((position + period / 2) % period - period / 2))


@functools.cache
def _letters(text: str) -> np.ndarray:
    """Coverage in [0, 1] of bold text, cropped to its ink; row 0 is the lowest."""
    canvas = Image.new("L", (160 * len(text) + 80, 260))
    font = ImageFont.load_default(size=160)
    ImageDraw.Draw(canvas).text((40, 30), text, fill=255, font=font, stroke_width=7, stroke_fill=255)
    return np.asarray(canvas.crop(canvas.getbbox()), np.float32)[::-1] / 255


def _text(text: str, x: np.ndarray, y: np.ndarray, height: float, limit: float) -> np.ndarray:
    """Coverage of text centred at the origin: `height` scene units tall, squeezed to be at most `limit` wide."""
    ink = _letters(text)
    width = min(limit, height * ink.shape[1] / ink.shape[0])
    column, row = (x / width + 0.5) * ink.shape[1], (y / height + 0.5) * ink.shape[0]
    inside = (column >= 0) & (column < ink.shape[1]) & (row >= 0) & (row < ink.shape[0])
    column, row = np.clip(column, 0, ink.shape[1] - 1).astype(int), np.clip(row, 0, ink.shape[0] - 1).astype(int)
    return ink[row, column] * inside


def _plain(code: str) -> Painter:
    color = _rgb(code)
    return lambda face, x, y: np.broadcast_to(color, (*x.shape, 3))


def _room(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Walls with paper above boards, a brick wall on the left, and a tiled floor."""
    if face == 4:
        return _floor(x, -y)
    if face == 5 or face == 2:
        return np.broadcast_to(_rgb("#e9e4da"), (*x.shape, 3))
    z = y + 1.7
    if face == 0:
        return _bricks(x, z)
    paper, ornament = (_rgb("#2b6f77"), _rgb("#7fb5ad")) if face == 3 else (_rgb("#d9a441"), _rgb("#f0d79a"))
    row = np.floor(z / 0.36)
    column = (x / 0.42 + 0.5 * row) % 1.0 - 0.5
    diamond = np.abs(column * 0.42) + np.abs((z / 0.36) % 1.0 - 0.5) * 0.36
    upper = _mix(np.broadcast_to(paper, (*x.shape, 3)), ornament, _edge(0.1 - diamond))
    boards = _mix(np.broadcast_to(_rgb("#f1ead9"), (*x.shape, 3)), _rgb("#b9ab90"), _stripe(x, 0.4, 0.07))
    wall = _mix(upper, boards, _edge(0.62 - z))
    wall = _mix(wall, _rgb("#8a4b2d"), _edge(0.055 - np.abs(z - 0.64)))
    return _mix(wall, _rgb("#8a4b2d"), _edge(0.14 - z))


def _bricks(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    row = np.floor(z / 0.25)
    along = x / 0.56 + 0.5 * (row % 2)
    shade = _cells(along, z / 0.25, 3)
    brick = _mix(np.broadcast_to(_rgb("#8f3f2e"), (*x.shape, 3)), _rgb("#d88a5f"), shade)
    gap = np.minimum(0.28 - np.abs(along % 1.0 - 0.5) * 0.56, 0.125 - np.abs((z / 0.25) % 1.0 - 0.5) * 0.25)
    return _mix(brick, _rgb("#dccdb8"), _edge(0.028 - gap))


def _floor(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Tiles in the room's coordinates, with a round rug below the globe."""
    tile = (np.floor(x / 0.5) + np.floor(y / 0.5)) % 2
    shade = (0.85 + 0.15 * _cells(x / 0.5, y / 0.5, 5))[..., None]
    floor = _mix(np.broadcast_to(_rgb("#efe3cb"), (*x.shape, 3)), _rgb("#b8805a"), tile) * shade
    u, v = x + 0.05, y - 0.95  # the room's middle lies at y = -1.1 of the world
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    rug = np.broadcast_to(_rgb("#24406e"), (*x.shape, 3))
    rug = _mix(rug, _rgb("#e8b04a"), _edge(0.07 - np.abs(radius - 1.33)))
    wave = radius - 1.06 - 0.09 * np.sign(np.sin(14 * angle)) * np.abs(np.sin(14 * angle))
    rug = _mix(rug, _rgb("#f3e9d2"), _edge(0.06 - np.abs(wave)))
    rug = _mix(rug, _rgb("#c8473a"), _edge(0.8 - radius))
    dot = np.hypot(radius - 0.6, 0.6 * ((angle / (math.pi / 6)) % 1.0 - 0.5) * (math.pi / 6))
    rug = _mix(rug, _rgb("#f3d9a0"), _edge(0.075 - dot))
    return _mix(floor, rug, _edge(1.45 - radius))


def _land(*coordinates: np.ndarray, seed: int) -> np.ndarray:
    """A height field in about [-0.5, 0.5]."""
    return (
        _noise(*coordinates, seed=seed)
        + 0.5 * _noise(*(2.1 * c for c in coordinates), seed=seed + 1)
        + 0.2 * _noise(*(4.3 * c for c in coordinates), seed=seed + 2)
    ) / 1.7 - 0.5


def _atlas_colors(height: np.ndarray, scale: float) -> np.ndarray:
    """Sea, coast, lowland and highland by height."""
    color = _mix(np.broadcast_to(_rgb("#3f8fc4"), (*height.shape, 3)), _rgb("#8cc7de"), _edge(scale * (height + 0.06)))
    color = _mix(color, _rgb("#8fb65a"), _edge(scale * height))
    color = _mix(color, _rgb("#e3c878"), _edge(scale * (height - 0.09)))
    return _mix(color, _rgb("#a9683c"), _edge(scale * (height - 0.17)))


def _globe(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    spot = np.sin(x) * np.cos(y), -np.cos(x) * np.cos(y), np.sin(y)
    color = _atlas_colors(_land(*(1.7 * c + 7 for c in spot), seed=21), 0.8)
    return _mix(color, _rgb("#f6f1e4"), 0.6 * _stripe(y * 0.5, math.pi / 12, 0.02))


def _poster(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A framed map."""
    if face != 2:
        return np.broadcast_to(_rgb("#4a2c1d"), (*x.shape, 3))
    color = _atlas_colors(_land(1.5 * x + 3, 1.5 * y + 9, seed=33), 0.7)
    color = _mix(color, _rgb("#f7f3e6"), 0.55 * np.maximum(_stripe(x, 0.5, 0.035), _stripe(y, 0.5, 0.035)))
    route = y - 0.25 * np.sin(2.6 * x) - 0.08
    color = _mix(color, _rgb("#d8322b"), _edge(0.035 - np.abs(route)) * _edge(0.72 - np.abs(x)))
    for mark in (-0.72, 0.72):
        color = _mix(color, _rgb("#d8322b"), _edge(0.09 - np.hypot(x - mark, y - 0.25 * math.sin(2.6 * mark) - 0.08)))
    border = np.minimum(1.02 - np.abs(x), 0.66 - np.abs(y))
    color = _mix(color, _rgb("#f7f3e6"), _edge(0.15 - border))
    return _mix(color, _rgb("#4a2c1d"), _edge(0.08 - border))


def _sign(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    board = np.broadcast_to(_rgb("#f4efe2"), (*x.shape, 3))
    if face != 2:
        return board
    board = _mix(board, _rgb("#c8473a"), _edge(0.09 - np.minimum(0.98 - np.abs(x), 0.37 - np.abs(y))))
    return _mix(board, _rgb("#22252b"), _text("BAGS", x, y, 0.42, 1.6))


def _toy_block(letter: str, code: str) -> Painter:
    """A cube with a letter on its sides and a frame along its edges."""

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        half = 0.25
        color = np.broadcast_to(_rgb("#f7ecd0"), (*x.shape, 3))
        color = _mix(color, _rgb(code), _edge(0.055 - (half - np.maximum(np.abs(x), np.abs(y)))))
        return _mix(color, _rgb(code), _text(letter, x, y, 0.29, 0.3))

    return paint


def _beach_ball(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    colors = np.stack(
        [_rgb(c) for c in ("#e5413a", "#fbf6ea", "#f2b632", "#fbf6ea", "#2f7fc1", "#fbf6ea", "#3f9a5a", "#fbf6ea")]
    )
    sectors = colors[np.floor((x / (2 * math.pi) + 0.5) * 8).astype(int) % 8]
    return _mix(sectors, _rgb("#fbf6ea"), _edge(0.3 * (np.abs(y) - 1.25)))


def _checked_ball(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    check = np.sin(4 * x) * np.sin(5 * y)
    return _mix(np.broadcast_to(_rgb("#f6f1e4"), (*x.shape, 3)), _rgb("#6a3d8f"), _edge(0.06 * check))


def _crate(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Planks with a frame and a diagonal brace."""
    half = 0.45
    shade = (0.75 + 0.35 * _cells(x * 0 + face, (y + half) / 0.18, 8))[..., None]
    wood = np.broadcast_to(_rgb("#b98a52"), (*x.shape, 3)) * shade
    wood = _mix(wood, _rgb("#6b4423"), _stripe(y + half, 0.18, 0.03))
    frame = _edge(0.11 - (half - np.maximum(np.abs(x), np.abs(y))))
    brace = _edge(0.065 - np.abs(x - y) / math.sqrt(2))
    return _mix(_mix(wood, _rgb("#8a5a2e"), brace), _rgb("#7a4c26"), frame)


def _barber_pole(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    turn = y - 0.36 * x / (2 * math.pi)
    color = _mix(np.broadcast_to(_rgb("#f8f4ea"), (*x.shape, 3)), _rgb("#cf2f36"), _stripe(turn, 0.36, 0.14))
    return color if face == 0 else np.broadcast_to(_rgb("#d9a441"), (*x.shape, 3))


def _plinth(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = np.broadcast_to(_rgb("#f2ead8"), (*x.shape, 3))
    if face != 0:
        return base
    return _mix(base, _rgb("#2f7fc1"), _stripe(x * 0.42, 2 * math.pi * 0.42 / 16, 0.08))


# --- solids ----------------------------------------------------------------------------------------------------------


def _turned(degrees: float) -> np.ndarray:
    """Rotation about the vertical."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def _box(center: tuple, half: tuple, paint: Painter, degrees: float = 0.0, **options) -> Solid:
    rotation = _turned(degrees) if degrees else None
    return Solid("box", np.array(center, np.float32), np.array(half, np.float32), paint, rotation, **options)


def _ball(center: tuple, radius: float, paint: Painter, degrees: float = 0.0) -> Solid:
    rotation = _turned(degrees) if degrees else None
    return Solid("sphere", np.array(center, np.float32), np.full(3, radius, np.float32), paint, rotation)


def _rod(start: tuple, end: tuple, radius: float, paint: Painter) -> Solid:
    """A cylinder between two points."""
    along = np.subtract(end, start)
    length = float(np.linalg.norm(along))
    axis = along / length
    rotation = None
    if abs(axis[2]) < 0.9999:
        side = np.cross([0, 1, 0] if abs(axis[1]) < 0.9 else [1, 0, 0], axis)
        side /= np.linalg.norm(side)
        rotation = np.stack([side, np.cross(axis, side), axis], axis=1).astype(np.float32)
    half = np.array([radius, radius, length / 2], np.float32)
    return Solid("cylinder", (np.add(start, end) / 2).astype(np.float32), half, paint, rotation)


def _flowers(x: float, y: float) -> list[Solid]:
    """A pot with thin stems: the scene's finest geometry."""
    solids = [
        _rod((x, y, 0), (x, y, 0.34), 0.2, _plain("#c0623c")),
        _rod((x, y, 0.34), (x, y, 0.42), 0.24, _plain("#d97b50")),
    ]
    heads = [
        (-0.34, -0.05, 1.05, "#f2b632"),
        (-0.1, 0.12, 1.32, "#e5413a"),
        (0.12, -0.12, 1.12, "#f6f1e4"),
        (0.36, 0.04, 0.95, "#e77fae"),
    ]
    for dx, dy, height, code in heads:
        tip = (x + dx, y + dy, height)
        solids.append(_rod((x + 0.25 * dx, y + 0.25 * dy, 0.4), tip, 0.03, _plain("#4f9a4a")))
        solids.append(_ball(tip, 0.11, _plain(code)))
    return solids


def _mobile(x: float, y: float) -> list[Solid]:
    """Balls on strings below a bar that hangs from the ceiling."""
    dark = _plain("#3a2b22")
    solids = [_rod((x - 0.6, y, 2.05), (x + 0.6, y, 2.05), 0.03, dark), _rod((x, y, 2.05), (x, y, 3.4), 0.025, dark)]
    for dx, height, radius, paint in (
        (-0.55, 1.55, 0.13, _plain("#e5413a")),
        (0.0, 1.78, 0.1, _plain("#f2b632")),
        (0.55, 1.62, 0.15, _checked_ball),
    ):
        solids.append(_rod((x + dx, y, height), (x + dx, y, 2.05), 0.02, dark))
        solids.append(_ball((x + dx, y, height), radius, paint))
    return solids


@functools.cache
def still_life() -> World:
    """The world, painted and lit; the same object at every call (the first takes 2 to 3 s)."""
    solids = [
        _box((0, -1.1, 1.7), (3.4, 3.4, 1.7), _room, hollow=True, texels=100.0, unseen_faces=(2, 5)),
        _box((-1.3, 2.26, 1.5), (1.02, 0.04, 0.66), _poster),
        _box((0.95, 2.26, 1.72), (0.98, 0.04, 0.37), _sign),
        _rod((0, 0.55, 0), (0, 0.55, 0.38), 0.42, _plinth),
        _ball((0, 0.55, 0.9), 0.52, _globe, 20.0),
        _box((-1.45, 0.9, 0.45), (0.45, 0.45, 0.45), _crate, 24.0),
        _ball((-1.4, 0.85, 1.16), 0.26, _checked_ball, 10.0),
        _rod((1.9, 1.35, 0), (1.9, 1.35, 1.8), 0.15, _barber_pole),
        _ball((1.9, 1.35, 1.92), 0.2, _plain("#e8b04a")),
        _ball((0.72, -0.55, 0.34), 0.34, _beach_ball, 62.0),
        _box((-1.1, -0.5, 0.25), (0.25, 0.25, 0.25), _toy_block("A", "#c8372f"), 14.0),
        _box((-0.5, -0.62, 0.25), (0.25, 0.25, 0.25), _toy_block("X", "#1f6fb2"), -8.0),
        _box((-0.82, -0.56, 0.75), (0.25, 0.25, 0.25), _toy_block("J", "#2f8a4c"), 5.0),
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
