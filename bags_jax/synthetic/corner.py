"""A world of the embedded scenes: the corner of a reading room, from inside (own design, no files needed).

Scene units: two walls of 6.4 meet at x = y = 0. The finest painted details are about 0.14: 4 px at width 128 from the
cameras. World frame: z up, the floor at z = 0, the cameras at negative x and y. For a viewer who looks into the corner
the wall y = 0 is on the left and the wall x = 0 on the right.
"""

import functools
import math

import numpy as np

from bags_jax.synthetic.bake import Light, make_world
from bags_jax.synthetic.layout import Layout
from bags_jax.synthetic.paint import cells, edge, fill, mix, noise, plain, rgb, stripe
from bags_jax.synthetic.raycast import Painter, Solid, World
from bags_jax.synthetic.shapes import ball, box, rod

_HALF_ROOM = 3.2  # half of the room's length and width
_TARGET = np.array([-0.95, -0.95, 1.0])  # of the cameras, world frame


# --- painting --------------------------------------------------------------------------------------------------------


def _room(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Striped paper on the left, leaves on the right, parquet below."""
    if face == 4:
        return _parquet(x, -y)
    z = y + 1.5
    if face == 1:
        wall = _leaf_paper(x, z)
    elif face == 3:
        wall = mix(fill("#7d3b4a", x), rgb("#a85c62"), stripe(x, 0.44, 0.2))
        flower = np.hypot((x + 0.22) % 0.44 - 0.22, (z + 0.22 * (np.floor(x / 0.44 + 0.5) % 2)) % 0.44 - 0.22)
        wall = mix(wall, rgb("#ecc9a0"), edge(0.08 - flower))
    else:
        return fill("#d8d2c4", x)
    wall = mix(wall, rgb("#f2ecdd"), edge(0.16 - np.abs(z - 0.1)))
    return mix(wall, rgb("#f2ecdd"), edge(0.09 - np.abs(z - 2.7)))


def _leaf_paper(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Pairs of slanted leaves in rows."""
    column = np.floor(x / 0.4)
    u, v = x / 0.4 - column - 0.5, (z / 0.46 + 0.5 * column) % 1.0 - 0.5
    across, along = np.abs(u) * 0.4 - 0.09, v * 0.46 - 0.55 * (np.abs(u) * 0.4)
    leaf = np.square(across / 0.075) + np.square(along / 0.14)
    wall = mix(fill("#e9dfc2", x), rgb("#5f8f7b"), edge(0.09 * (1 - leaf)))
    return mix(wall, rgb("#c98f4e"), edge(0.03 - np.abs(u) * 0.4))


def _parquet(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Planks in squares of alternating direction, and a rug (the room's middle is at x = y = -3.2 of the world)."""
    square = (np.floor(x / 0.72) + np.floor(y / 0.72)) % 2
    along, across = np.where(square > 0, x, y), np.where(square > 0, y, x)
    shade = cells(across / 0.18 + 7 * np.floor(along / 0.72), along / 0.72, 11)
    floor = mix(fill("#8a5428", x), rgb("#d9a066"), shade)
    u, v = x - 1.75, y - 1.75
    u, v = (u + v) / math.sqrt(2), (v - u) / math.sqrt(2)  # the rug lies across the corner
    border = np.minimum(0.95 - np.abs(u), 1.35 - np.abs(v))
    rug = mix(fill("#2d4a63", x), rgb("#e2c58f"), edge(0.17 - np.abs(np.abs((v + 0.3) % 0.6 - 0.3) + np.abs(u) - 0.4)))
    rug = mix(rug, rgb("#b8432f"), edge(0.17 - np.abs((v + 0.3) % 0.6 - 0.3) - np.abs(u)))
    rug = mix(rug, rgb("#b8432f"), edge(0.24 - border))
    rug = mix(rug, rgb("#f0e2c4"), edge(0.1 - border))
    return mix(floor, rug, edge(border))


def _book(seed: int) -> Painter:
    """A cloth spine with bands in two colours."""
    key = np.random.default_rng([seed, 4])
    cloths = ("#a8322d", "#1f5673", "#d9a02f", "#3d6b41", "#6a3d6f", "#e6d9bd", "#27313d", "#c8683a", "#7fa3a8")
    cloth, band = (cloths[i] for i in key.choice(len(cloths), 2, replace=False))
    low, high = key.uniform(-0.13, -0.07), key.uniform(0.07, 0.13)
    thick = key.uniform(0.045, 0.06)

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face == 5:
            return fill("#efe6d2", x)
        spine = mix(fill(cloth, x), rgb(band), edge(thick - np.abs(y - low)))
        return mix(spine, rgb(band), edge(thick - np.abs(y - high)))

    return paint


def _wood(code: str, dark: str) -> Painter:
    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        grain = noise(2.0 * x + 9, 9.0 * y + 5, seed=face)
        return mix(fill(code, x), rgb(dark), np.clip(2.4 * grain - 0.9, 0, 1) * 0.7)

    return paint


def _framed(half_x: float, half_y: float, face_seen: int, picture: Painter, frame: str) -> Painter:
    """A picture behind a mat in a frame."""

    def paint(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face != face_seen:
            return fill(frame, x)
        border = np.minimum(half_x - np.abs(x), half_y - np.abs(y))
        color = mix(picture(face, x, y), rgb("#f6f1e3"), edge(0.15 - border))
        return mix(color, rgb(frame), edge(0.075 - border))

    return paint


def _landscape(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Hills at sunset."""
    color = mix(fill("#f4b45f", x), rgb("#3f6fa3"), np.clip(1.4 * y + 0.45, 0, 1))
    color = mix(color, rgb("#fff0c2"), edge(0.12 - np.hypot(x - 0.2, y - 0.1)))
    color = mix(color, rgb("#7a4b72"), edge(0.05 + 0.09 * np.sin(5 * x + 1) + 0.03 * np.sin(11 * x) - y))
    color = mix(color, rgb("#35502f"), edge(-0.1 + 0.08 * np.sin(4 * x - 1.4) - y))
    return mix(color, rgb("#d4c05a"), edge(-0.24 + 0.05 * np.sin(6 * x) - y))


def _abstract(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Discs and bars."""
    color = mix(fill("#efe7d4", x), rgb("#d1402f"), edge(0.2 - np.hypot(x + 0.08, y - 0.2)))
    color = mix(color, rgb("#1d4f7c"), edge(0.09 - np.abs(x - 0.6 * y - 0.1)))
    color = mix(color, rgb("#e8b13a"), edge(0.15 - np.hypot(x - 0.1, y + 0.25)))
    return mix(color, rgb("#1b1b1f"), edge(0.05 - np.abs(y + 0.02 + 0.3 * x)))


def _portrait(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A cat."""
    color = mix(fill("#4d8f8b", x), rgb("#2e6a70"), stripe(x + y, 0.3, 0.14))
    ears = np.abs(np.abs(x) - 0.13) * 1.3 + (y - 0.02)
    color = mix(color, rgb("#e08a3c"), np.maximum(edge(0.2 - np.hypot(x, y + 0.06)), edge(0.24 - ears) * edge(y)))
    color = mix(color, rgb("#fbf3de"), edge(0.09 - np.hypot(x, (y + 0.15) * 1.3)))
    return mix(color, rgb("#1c1c1c"), edge(0.045 - np.hypot(np.abs(x) - 0.1, y + 0.01)))


def _clock(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if face == 0:
        return fill("#5a3921", x)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    color = mix(fill("#f8f2e0", x), rgb("#b03a2e"), edge(0.03 - np.abs(radius - 0.33)))
    hours = np.abs((angle / (math.pi / 2) + 0.5) % 1 - 0.5) * (math.pi / 2) * radius
    color = mix(color, rgb("#22262e"), edge(0.04 - hours) * edge(0.05 - np.abs(radius - 0.23)))
    hands = np.minimum(np.abs(x) + 9 * np.maximum(-y - 0.02, 0), np.abs(x - y) + 9 * np.maximum(-x, 0))
    return mix(color, rgb("#22262e"), edge(0.035 - hands) * edge(0.2 - radius))


def _shade(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A pleated lamp shade."""
    color = mix(fill("#f7e3ae", x), rgb("#e0a94e"), stripe(x * 0.36, 2 * math.pi * 0.36 / 10, 0.1))
    return mix(color, rgb("#9c3d2c"), edge(0.05 - (0.22 - np.abs(y))))


def _vase(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    wave = 0.4 * np.sin(6 * x)
    color = mix(fill("#f3efe4", x), rgb("#25559a"), edge(0.2 * (0.22 - np.abs(y - wave))))
    return mix(color, rgb("#25559a"), edge(0.2 * (np.abs(y) - 1.0)))


def _cushion(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return mix(fill("#d8c08a", x), rgb("#4b6e8f"), np.maximum(stripe(x, 0.3, 0.11), 0.6 * stripe(y, 0.3, 0.11)))


# --- solids ----------------------------------------------------------------------------------------------------------


def _bookcase() -> list[Solid]:
    """On the left wall: three full shelves."""
    oak = _wood("#a8743d", "#7a4c22")
    left, right, depth = -2.75, -0.85, 0.36
    middle, y = (left + right) / 2, -depth / 2
    solids = [box((x, y, 0.93), (0.04, depth / 2, 0.93), oak, hidden_faces=(3, 4)) for x in (left, right)]
    heights = (0.08, 0.66, 1.24, 1.82)
    solids += [box((middle, y, z), ((right - left) / 2 - 0.04, depth / 2, 0.04), oak) for z in heights]
    key = np.random.default_rng(12)
    for shelf in heights[:3]:
        x, gap = left + 0.08, int(key.integers(3, 7))
        for number in range(12):
            width, height = key.uniform(0.075, 0.11), key.uniform(0.17, 0.235)
            if x + 2 * width > right - 0.06:
                break
            if number != gap:
                place, half = (
                    (x + width, -0.17, shelf + 0.04 + height),
                    (width, 0.14 + key.uniform(-0.02, 0.02), height),
                )
                solids.append(box(place, half, _book(len(solids)), hidden_faces=(3, 4), small=True))
            x += 2 * width + 0.008
    return solids


def _on_the_bookcase() -> list[Solid]:
    return [
        ball((-2.35, -0.2, 2.06), 0.2, _vase),
        box((-1.75, -0.19, 1.97), (0.22, 0.14, 0.1), _book(77), 8.0),
        box((-1.72, -0.19, 2.14), (0.19, 0.13, 0.07), _book(78), -6.0),
        ball((-1.15, -0.2, 2.02), 0.16, plain("#c84b36")),
    ]


def _pictures() -> list[Solid]:
    """On the right wall (its own face is -x), and one on the left."""
    return [
        box((-0.04, -1.2, 1.98), (0.04, 0.62, 0.44), _framed(0.62, 0.44, 0, _landscape, "#3a2416")),
        box((-0.04, -2.25, 1.9), (0.04, 0.34, 0.5), _framed(0.34, 0.5, 0, _abstract, "#1d1d20")),
        box((-0.42, -0.04, 1.75), (0.31, 0.04, 0.36), _framed(0.31, 0.36, 2, _portrait, "#b98a35")),
        rod((-0.06, -3.1, 2.0), (0.0, -3.1, 2.0), 0.38, _clock),
    ]


def _sideboard() -> list[Solid]:
    """On the right wall: a sideboard, and the things that stand on it."""
    teak = _wood("#8c5a34", "#5b351b")

    def front(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if face != 0:
            return teak(face, x, y)
        u = (x + 0.42) % 0.84 - 0.42
        panel = np.minimum(0.36 - np.abs(u), 0.24 - np.abs(y))
        color = mix(teak(face, x, y), rgb("#d9b27a"), edge(panel))
        return mix(color, rgb("#2f1d12"), edge(0.055 - np.hypot(u - 0.22, y)))

    solids = [box((-0.32, -1.75, 0.5), (0.3, 1.26, 0.3), front)]
    solids += [rod((x, y, 0), (x, y, 0.22), 0.05, plain("#3a2416")) for x in (-0.55, -0.1) for y in (-2.9, -0.6)]
    solids += [
        ball((-0.35, -0.85, 1.03), 0.23, _vase, 40.0),
        box((-0.33, -1.5, 0.88), (0.17, 0.24, 0.08), _book(81), 12.0),
        box((-0.33, -1.5, 1.02), (0.14, 0.2, 0.06), _book(85), -10.0),
        rod((-0.35, -2.15, 0.8), (-0.35, -2.15, 1.08), 0.13, _tin),
        rod((-0.36, -2.62, 0.8), (-0.36, -2.62, 1.24), 0.1, plain("#2f6f5e")),
        ball((-0.36, -2.62, 1.28), 0.13, plain("#e9b949")),
    ]
    for dx, dy, height, code in (
        (0.1, -0.16, 1.55, "#e05a6d"),
        (-0.12, 0.02, 1.68, "#f4efe0"),
        (0.06, 0.19, 1.5, "#e9a23b"),
    ):
        tip = (-0.35 + dx, -0.85 + dy, height)
        solids += [rod((-0.35, -0.85, 1.2), tip, 0.022, plain("#3f7a3c")), ball(tip, 0.095, plain(code))]
    return solids


def _tin(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return mix(fill("#d9402f", x), rgb("#f6e8c8"), edge(0.07 - np.abs(y))) if face == 0 else fill("#b9b9b4", x)


def _lamp() -> list[Solid]:
    """A standing lamp in the corner."""
    brass = plain("#b08a3e")
    return [
        rod((-0.5, -0.42, 0), (-0.5, -0.42, 0.06), 0.24, plain("#3a3227")),
        rod((-0.5, -0.42, 0.06), (-0.5, -0.42, 1.12), 0.03, brass),
        rod((-0.5, -0.42, 1.0), (-0.5, -0.42, 1.36), 0.3, _shade),
    ]


def _seats() -> list[Solid]:
    """A stool with a cup, a pile of cushions, and a ball on the rug."""
    x, y = -1.85, -1.2
    legs = [(0.2, 0.12), (-0.2, 0.12), (0.0, -0.24)]
    solids = [rod((x + 1.3 * u, y + 1.3 * v, 0), (x + u, y + v, 0.52), 0.035, plain("#5b3a20")) for u, v in legs]
    solids += [
        rod((x, y, 0.52), (x, y, 0.6), 0.33, _wood("#c58f52", "#8f5f2d")),
        rod((x + 0.05, y - 0.05, 0.6), (x + 0.05, y - 0.05, 0.8), 0.1, _tin),
        box((-1.05, -1.65, 0.13), (0.36, 0.36, 0.13), _cushion, 20.0),
        box((-1.05, -1.65, 0.37), (0.3, 0.3, 0.11), _cushion, 52.0),
        ball((-1.35, -2.35, 0.22), 0.22, _globe_ball, 30.0),
    ]
    return solids


def _globe_ball(face: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    colors = np.stack([rgb(c) for c in ("#2f7fc1", "#f8f1df", "#e5413a", "#f8f1df", "#f2b632", "#f8f1df")])
    return colors[np.floor((x / (2 * math.pi) + 0.5) * 6).astype(int) % 6]


@functools.cache
def build_corner() -> World:
    """Paints and lights the world. Later calls return the same object."""
    middle = (-_HALF_ROOM, -_HALF_ROOM, 1.5)
    solids = [
        box(middle, (_HALF_ROOM, _HALF_ROOM, 1.5), _room, hollow=True, texels=100.0, hidden_faces=(0, 2, 5)),
        *_bookcase(),
        *_on_the_bookcase(),
        *_pictures(),
        *_sideboard(),
        *_lamp(),
        *_seats(),
    ]
    light = Light(
        center=np.array([-2.6, -2.9, 2.65], np.float32),
        radius=0.3,
        power=6.8 * np.array([1.0, 0.93, 0.8], np.float32),
        ambient=0.3 * np.array([0.85, 0.92, 1.0], np.float32),
    )
    return make_world(tuple(solids), light)


# --- cameras ---------------------------------------------------------------------------------------------------------


def _place_camera(index: float, num: int, key: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Places a camera on a sideways track that bends a little around the corner, rises and falls."""
    place = index / (num - 1) - 0.5
    aside, away = 2.9 * place + key.uniform(-0.06, 0.06), 3.75 - 1.2 * place**2 + key.uniform(-0.12, 0.12)
    height = 1.35 + 0.4 * math.sin(5.0 * place) + key.uniform(-0.1, 0.1)
    x, y = (aside - away) / math.sqrt(2), (-aside - away) / math.sqrt(2)
    center = np.array([_TARGET[0] + x, _TARGET[1] + y, height])
    target = _TARGET + [0.28 * aside, -0.28 * aside, 0.0] + key.uniform(-0.08, 0.08, 3)
    return center, target, math.radians(key.uniform(-1.5, 1.5))


LAYOUT = Layout(
    make_world=build_corner,
    place_camera=_place_camera,
    focal=0.9,
    aperture=0.25,
    focus_depths=(2.4, 3.4, 4.8),
    point_noise=0.025,
)
