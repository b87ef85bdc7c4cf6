"""Scenes on disk: one file each, written whole or not at all."""

import contextlib
import dataclasses
import pathlib
import zipfile
import zlib

import numpy as np

from bags_jax.atomic import replace_atomic
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError


def read_cache(path: pathlib.Path | None, num_views: int, shape: tuple[int, int, int]) -> Scene | None:
    """The cached scene, or None where it is absent or cannot be read."""
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
        stacks = [fields.pop(name) for name in ("images", "sharp_images")]
        if any(stack.shape != (num_views, *shape) or stack.dtype != np.uint8 for stack in stacks):
            return None
        names = tuple(str(name) for name in fields.pop("names"))
        return Scene(names=names, images=tuple(stacks[0]), sharp_images=tuple(stacks[1]), **fields)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write_cache(path: pathlib.Path | None, scene: Scene) -> None:
    """Writes the whole file or nothing; a cache that cannot be written is done without."""
    if path is None:
        return
    arrays = {name: value for name, value in dataclasses.asdict(scene).items() if value is not None}
    del arrays["background"], arrays["notes"]
    with contextlib.suppress(UserError), replace_atomic(path) as unfinished:
        np.savez(unfinished, allow_pickle=False, **{name: np.asarray(value) for name, value in arrays.items()})
