"""The working directory: one configuration, one run."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from bags_jax.atomic import write_atomic
from bags_jax.config import read_config
from bags_jax.errors import UserError
from bags_jax.settings import Settings

CONFIG_FILE = "config.json"
CAPTURE_FILE = "capture.json"
PHOTOGRAPHS_FILE = "photographs.json"
FORMAT_VERSION = 3  # of a run: raise it whenever older runs can no longer be read
MOVED = 1e-3  # a pose may change by this share of its largest number: rounding does that, a new reconstruction more
# A run may go on with other values of these settings: they change neither the scene nor what it is trained for.
FREE = (
    "minutes",
    "log_every",
    "checkpoint_every",
    "pictures",
    "pictures_every",
    "keep_checkpoints",
    "compilation_cache",
    "num_devices",
    "shard_gaussians",
)


def claim_workdir(workdir: str | pathlib.Path, settings: Settings) -> pathlib.Path:
    """Makes the directory and writes the settings into it, or checks that it holds a run with the same settings.

    Raises:
      UserError: the directory holds a run with other settings, or cannot be written.
    """
    path = pathlib.Path(workdir).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not holds_run(path, settings):
            save_settings(path, settings)
    except OSError as error:
        raise UserError(f"--workdir={path} cannot be written ({error.strerror}): choose a folder that can") from error
    return path


def save_settings(path: pathlib.Path, settings: Settings) -> None:
    """Writes the settings of a run, in place of those that its directory holds."""
    run = {"format_version": FORMAT_VERSION, **dataclasses.asdict(settings)}
    write_atomic(path / CONFIG_FILE, (json.dumps(run, indent=2) + "\n").encode())


def holds_run(workdir: str | pathlib.Path, settings: Settings) -> bool:
    """True if a directory holds a run with these settings, False if it holds none.

    Raises:
      UserError: it holds a run with other settings or of another format, or its settings cannot be read.
    """
    path = pathlib.Path(workdir).expanduser()
    if not (path / CONFIG_FILE).exists():
        return False
    theirs, ours = _flat(dataclasses.asdict(read_settings(path))), _flat(dataclasses.asdict(settings))
    other = [key for key in sorted(ours) if theirs[key] != ours[key] and key not in FREE]
    if other:
        key = other[0]
        raise UserError(
            f"--workdir={path} holds a run of another configuration: {key} is {theirs[key]!r} there and {ours[key]!r} here"
            + (f" ({len(other)} fields differ)" if len(other) > 1 else "")
            + ": choose another --workdir, or the configuration of that run"
        )
    return True


def read_settings(workdir: str | pathlib.Path) -> Settings:
    """The settings of a run.

    Raises:
      UserError: there is no run, its settings cannot be read, or it has another format.
    """
    path = pathlib.Path(workdir).expanduser() / CONFIG_FILE
    if not os.path.isfile(path):  # False too where the folder is not readable
        raise UserError(f"no {CONFIG_FILE} in --workdir={path.parent}, expected the folder of a training run")
    try:
        fields: Any = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, not text
        raise UserError(f"{path} cannot be read ({error}): choose another --workdir") from error
    if not isinstance(fields, dict) or not {"num_steps", "data", "stages"} <= fields.keys():
        raise UserError(f"{path} is no configuration of a training run: choose another --workdir")
    version = fields.pop("format_version", 1)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {version}, this version of bags-jax reads format {FORMAT_VERSION}: train again in another "
            "--workdir, or use the version that trained it"
        )
    try:
        return read_config(fields)
    except UserError as error:  # somebody added, removed or narrowed a setting
        raise UserError(
            f"{path} does not fit the settings of this version of bags-jax ({error}): train again in another --workdir, or use "
            "the version that trained it"
        ) from error


def saved_views_per_step(workdir: str | pathlib.Path) -> int:
    """Views per step of the run in a directory, so that it goes on the same on another number of devices. 0: no run."""
    path = pathlib.Path(workdir).expanduser()
    return read_settings(path).views_per_step if (path / CONFIG_FILE).is_file() else 0


def claim_capture(path: pathlib.Path, cameras: dict[str, Float[np.ndarray, "4 4"]]) -> None:
    """Writes the training views of a run, or checks that they are still the same.

    Args:
      path: the working directory.
      cameras: cam_from_world by the name of the photograph.
    Raises:
      UserError: the run has other training views, or its file cannot be written.
    """
    check_capture(path, cameras)
    if not (path / CAPTURE_FILE).exists():
        poses = {name: viewmat.tolist() for name, viewmat in cameras.items()}
        write_atomic(path / CAPTURE_FILE, (json.dumps(poses) + "\n").encode())


def note_photographs(path: pathlib.Path, hashes: dict[str, str]) -> None:
    """Writes the SHA-256 of the pixels of every photograph that a run trains on, by its name, when it starts."""
    if not (path / PHOTOGRAPHS_FILE).exists():
        write_atomic(path / PHOTOGRAPHS_FILE, (json.dumps(hashes, indent=1) + "\n").encode())


def read_photographs(workdir: str | pathlib.Path) -> dict[str, str]:
    """What `note_photographs` wrote; empty in a run from before it did.

    Raises:
      UserError: the file cannot be read.
    """
    path = pathlib.Path(workdir).expanduser() / PHOTOGRAPHS_FILE
    if not os.path.lexists(path):
        return {}
    if not path.is_file():  # a pipe or a device would be read without end
        raise UserError(f"{path} is no file: choose another --workdir")
    try:
        hashes: Any = json.loads(path.read_text())
        return {str(name): str(value) for name, value in hashes.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --workdir") from error


def check_capture(workdir: str | pathlib.Path, cameras: dict[str, Float[np.ndarray, "4 4"]]) -> None:
    """Raises UserError if a run was trained on other photographs, or on a reconstruction with other axes or another unit.

    A run that has not started yet has no file of its capture, and passes.
    """
    path = pathlib.Path(workdir).expanduser() / CAPTURE_FILE
    if not os.path.lexists(path):
        return
    if not path.is_file():  # a pipe or a device would be read without end
        raise UserError(f"{path} is no file: choose another --workdir")
    try:
        poses: Any = json.loads(path.read_text())
        saved = {name: np.array(viewmat, np.float64).reshape(4, 4) for name, viewmat in poses.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --workdir") from error
    fix = "restore the capture, or train again in another --workdir"
    if saved.keys() != cameras.keys():
        name = min(saved.keys() ^ cameras.keys())
        raise UserError(f"{path.parent} holds a run on other photographs: {name} is in one of the two alone; {fix}")
    for name, viewmat in cameras.items():
        if np.max(np.abs(viewmat - saved[name])) > MOVED * max(1.0, float(np.max(np.abs(viewmat)))):
            raise UserError(f"{path.parent} holds a run on other poses: the camera of {name} has moved since; {fix}")


def _flat(tree: dict, prefix: str = "") -> dict:
    """Nested fields by dotted name."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
