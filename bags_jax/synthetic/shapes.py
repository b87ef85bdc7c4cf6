"""Solids of the embedded worlds, by their place, size and rotation."""

import math

import numpy as np

from bags_jax.synthetic.raycast import Painter, Solid


def rotate_about_z(degrees: float) -> np.ndarray:
    """Returns the rotation about the vertical."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def box(center: tuple, half: tuple, paint: Painter, degrees: float = 0.0, **options) -> Solid:
    """Returns a box, rotated about the vertical."""
    rotation = rotate_about_z(degrees) if degrees else None
    return Solid("box", np.array(center, np.float32), np.array(half, np.float32), paint, rotation, **options)


def ball(center: tuple, radius: float, paint: Painter, degrees: float = 0.0) -> Solid:
    """Returns a sphere, rotated about the vertical."""
    rotation = rotate_about_z(degrees) if degrees else None
    return Solid("sphere", np.array(center, np.float32), np.full(3, radius, np.float32), paint, rotation)


def leaf(center: tuple, half: tuple, tip: tuple, facing: tuple, paint: Painter, **options) -> Solid:
    """Returns a flat ellipsoid. Its tip points along `tip`; longitude 0 points to the part of `facing` across the tip.

    half: half width, half thickness, half length, scene units.
    """
    z = np.array(tip, float) / np.linalg.norm(tip)
    y = -np.array(facing, float)
    y -= (y @ z) * z
    y /= np.linalg.norm(y)
    rotation = np.stack([np.cross(y, z), y, z], axis=1).astype(np.float32)
    return Solid("sphere", np.array(center, np.float32), np.array(half, np.float32), paint, rotation, **options)


def rod(start: tuple, end: tuple, radius: float, paint: Painter) -> Solid:
    """Returns a cylinder between two points."""
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
