"""The working directory: one configuration, one run."""

import json
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from bags_jax.atomic import write_atomic
from bags_jax.errors import UserError

CONFIG_FILE = "config.json"
CAPTURE_FILE = "capture.json"
MOVED = 1e-3  # part of the largest number in a pose by which it may change: what rounding does, no new reconstruction
# A run may go on with other values of these: they change neither the scene nor what it is trained for.
FREE = ("log_every", "checkpoint_every", "keep_checkpoints", "compilation_cache", "num_devices")


def claim_workdir(workdir: str | pathlib.Path, config: ConfigDict) -> pathlib.Path:
    """Makes the directory and notes the configuration there, or checks that it is the one noted.

    Raises:
      UserError: it belongs to another configuration, or cannot be written.
    """
    path = pathlib.Path(workdir).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not holds_run(path, config):
            ours = json.loads(config.to_json_best_effort())
            write_atomic(path / CONFIG_FILE, (json.dumps(ours, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"--workdir={path} cannot be written ({error.strerror}): choose a folder that can") from error
    return path


def holds_run(workdir: str | pathlib.Path, config: ConfigDict) -> bool:
    """Whether a run of this configuration was begun in a directory.

    Raises:
      UserError: one of another configuration was, or its note cannot be read.
    """
    path = pathlib.Path(workdir).expanduser()
    if not (path / CONFIG_FILE).exists():
        return False
    _check_same(path, _read_fields(path / CONFIG_FILE), json.loads(config.to_json_best_effort()))
    return True


def claim_capture(path: pathlib.Path, cameras: dict[str, Float[np.ndarray, "4 4"]]) -> None:
    """Notes the training views of a run, or checks that they are those noted.

    Args:
      path: the working directory.
      cameras: cam_from_world by the name of the photograph.
    Raises:
      UserError: the run was begun on others, or the note cannot be written.
    """
    check_capture(path, cameras)
    if not (path / CAPTURE_FILE).exists():
        noted = {name: viewmat.tolist() for name, viewmat in cameras.items()}
        write_atomic(path / CAPTURE_FILE, (json.dumps(noted) + "\n").encode())


def check_capture(workdir: str | pathlib.Path, cameras: dict[str, Float[np.ndarray, "4 4"]]) -> None:
    """Raises UserError where a run was trained on other photographs, or on a reconstruction with other axes or another unit.

    Runs of before this was noted pass.
    """
    path = pathlib.Path(workdir).expanduser() / CAPTURE_FILE
    if not path.exists():
        return
    try:
        noted = {
            name: np.array(viewmat, np.float64).reshape(4, 4) for name, viewmat in json.loads(path.read_text()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --workdir") from error
    mend = "bring the capture back as it was, or train again in another --workdir"
    if noted.keys() != cameras.keys():
        name = min(noted.keys() ^ cameras.keys())
        raise UserError(f"{path.parent} holds a run on other photographs: {name} is in one of the two alone; {mend}")
    for name, viewmat in cameras.items():
        if np.max(np.abs(viewmat - noted[name])) > MOVED * max(1.0, float(np.max(np.abs(viewmat)))):
            raise UserError(f"{path.parent} holds a run on other poses: the camera of {name} has moved since; {mend}")


def _read_fields(path: pathlib.Path) -> dict:
    """The fields of a noted configuration."""
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # ValueError: not JSON, not text
        raise UserError(f"{path} cannot be read ({error}): choose another --workdir") from error
    if not isinstance(fields, dict) or not {"num_steps", "data", "stages"} <= fields.keys():
        raise UserError(f"{path} is no configuration of a training run: choose another --workdir")
    return fields


def _check_same(path: pathlib.Path, theirs: dict, ours: dict) -> None:
    a, b = _flat(theirs), _flat(ours)
    other = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and key not in FREE]
    if other:
        key = other[0]
        raise UserError(
            f"--workdir={path} holds a run of another configuration: {key} is {a.get(key)!r} there and {b.get(key)!r} here"
            + (f" ({len(other)} fields differ)" if len(other) > 1 else "")
            + ": choose another --workdir, or the configuration of that run"
        )


def _flat(tree: dict, prefix: str = "") -> dict:
    """Nested fields by dotted name."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def read_config(workdir: str | pathlib.Path) -> Any:
    """The configuration of a run.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = pathlib.Path(workdir).expanduser() / CONFIG_FILE
    if not os.path.isfile(path):  # False too where we may not look
        raise UserError(f"no {CONFIG_FILE} in --workdir={path.parent}, expected the folder of a training run")
    return ConfigDict(_read_fields(path))


def noted_views_per_step(workdir: str | pathlib.Path) -> int:
    """Views per step of the run in a directory, so that it goes on the same on another number of devices; 0: no run."""
    path = pathlib.Path(workdir).expanduser() / CONFIG_FILE
    return int(read_config(workdir).get("views_per_step", 0)) if os.path.isfile(path) else 0
