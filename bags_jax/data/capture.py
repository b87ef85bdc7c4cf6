"""Capture: the result of a scene format's reader."""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float

from bags_jax.data.lens import Lens


def _make_no_points() -> Float[np.ndarray, "0 3"]:
    return np.zeros((0, 3))


@dataclasses.dataclass(frozen=True)
class Capture:
    """The contents of a format's files for V posed photographs, before any pixel is read. Views in any order."""

    names: tuple[str, ...]
    files: tuple[pathlib.Path, ...]  # full-size photographs
    viewmats: Float[np.ndarray, "V 4 4"]  # cam_from_world, OpenCV axes (+x right, +y down, +z forward), scene units
    lenses: tuple[Lens, ...]
    points: Float[np.ndarray, "P 3"] = dataclasses.field(default_factory=_make_no_points)  # world frame
    point_colors: Float[np.ndarray, "P 3"] = dataclasses.field(default_factory=_make_no_points)  # sRGB in [0, 1]
    test_names: frozenset[str] | None = None  # held-out views; None: the files do not list them
    notes: tuple[str, ...] = ()  # messages to the user, one line each
    mask_files: tuple[pathlib.Path | None, ...] = ()  # of each view, None: no mask; (): those in masks/, if any
    # Poses in the middle of the exposures, where the files know more than `viewmats`; load_scene gives them to training views.
    middle_viewmats: Float[np.ndarray, "V 4 4"] | None = None
    depths: Float[np.ndarray, "V 2"] | None = None  # nearest and farthest depth of each view, scene units
