"""Solids of the embedded scenes, placed and turned."""

import math

import numpy as np

from bags_jax.synthetic.raycast import Painter, Solid


def turned(degrees: float) -> np.ndarray:
    """Rotation about the vertical."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def box(center: tuple, half: tuple, paint: Painter, degrees: float = 0.0, **options) -> Solid:
    rotation = turned(degrees) if degrees else None
    return Solid("box", np.array(center, np.float32), np.array(half, np.float32), paint, rotation, **options)


def ball(center: tuple, radius: float, paint: Painter, degrees: float = 0.0) -> Solid:
    rotation = turned(degrees) if degrees else None
    return Solid("sphere", np.array(center, np.float32), np.full(3, radius, np.float32), paint, rotation)


def leaf(center: tuple, half: tuple, tip: tuple, facing: tuple, paint: Painter, **options) -> Solid:
    """A flat ellipsoid: half width, half thickness, half length; the tip points along `tip`, longitude 0 to `facing`.

    Only the part of `facing` across the tip counts.
    """
    z = np.array(tip, float) / np.linalg.norm(tip)
    y = -np.array(facing, float)
    y -= (y @ z) * z
    y /= np.linalg.norm(y)
    rotation = np.stack([np.cross(y, z), y, z], axis=1).astype(np.float32)
    return Solid("sphere", np.array(center, np.float32), np.array(half, np.float32), paint, rotation, **options)


def rod(start: tuple, end: tuple, radius: float, paint: Painter) -> Solid:
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
