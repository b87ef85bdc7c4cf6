"""Cache of rendered scenes: one file a scene."""

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
    """Reads a cached scene; None if the file is absent, cannot be read, or holds another number or shape of views."""
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files}
        stacks = [fields.pop(name) for name in ("images", "sharp_images")]
        if any(stack.shape != (num_views, *shape) or stack.dtype != np.uint8 for stack in stacks):
            return None
        names = tuple(str(name) for name in fields.pop("names"))
        tuples = {"images": tuple(stacks[0]), "sharp_images": tuple(stacks[1]), "blur_px": tuple(fields.pop("blur_px"))}
        return Scene(names=names, **tuples, **fields)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write_cache(path: pathlib.Path | None, scene: Scene) -> None:
    """Writes a scene to the cache, atomically. Does nothing if the file cannot be written."""
    if path is None:
        return
    arrays = {name: value for name, value in dataclasses.asdict(scene).items() if value is not None}
    del arrays["background"], arrays["notes"]
    with contextlib.suppress(UserError), replace_atomic(path) as temporary:
        np.savez(temporary, allow_pickle=False, **{name: np.asarray(value) for name, value in arrays.items()})
