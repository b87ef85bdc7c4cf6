"""One case of fuzz.py: writes a whole input, damages it, reads it, and checks that the result can be used."""

import dataclasses
import functools
import json
import pathlib
import random
import signal
import warnings
from typing import Any

import fuzz_cases
import jax
import jax.numpy as jnp
import numpy as np

from bags_jax.checkpoint import Checkpoints
from bags_jax.config import default_config, read_config
from bags_jax.data import load_scene
from bags_jax.data.scene import Scene
from bags_jax.export.ply import read_ply
from bags_jax.job import num_random_points
from bags_jax.scene.initialize import (
    init_gaussians,
    init_state,
    near_plane,
    random_points,
    scene_extent,
    with_optimizers,
)
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.scene.pose_refinement import make_pose_frame
from bags_jax.settings import Optim, Settings, in_steps
from bags_jax.workdir import check_capture, claim_capture, claim_workdir, holds_run, read_settings
from bags_jax.writers import Writers

LIMIT_S = 25  # of a case; a signal ends it where Python runs


class TookTooLong(BaseException):
    """No Exception: readers turn those into errors of the user."""


class Insane(Exception):
    """A reader accepted an input that cannot be used."""


def read_one(kind: str, seed: int, place: pathlib.Path, what: list[str] | None = None) -> None:
    """Runs one case. Raises what the reader raises, or Insane.

    Args:
      what: its first item becomes the damage, in words.
    """
    rng = random.Random(f"{kind} {seed}")
    what = what if what is not None else [""]
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT_S)
    try:
        if kind == "configuration":
            _read_configuration(rng, what)
            return
        root = place / f"case {seed}"
        fuzz_cases.copy_tree(_whole(kind, place), root)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of the damage itself
            what[0] = fuzz_cases.damage(root, kind, rng)
        if kind == "workdir":
            _read_workdir(root)
        elif kind == "checkpoint":
            _read_checkpoint(root)
        else:
            if kind == "ply":
                _read_splat(root)
            factor, holdout = rng.choice((1, 1, 1, 2)), rng.choice((0, 0, 0, 3, 10**400))
            check_scene(load_scene(str(root), factor=factor, holdout=holdout))
    finally:
        signal.alarm(0)


def _stop(*_) -> None:
    raise TookTooLong(f"a case took more than {LIMIT_S} s")


@functools.cache
def _whole(kind: str, place: pathlib.Path) -> pathlib.Path:
    """Writes the undamaged input of a kind, once."""
    root = place / f"whole {kind}"
    root.mkdir()
    if kind == "workdir":
        claim_workdir(root, SETTINGS)
        claim_capture(root, CAMERAS)
        with Writers(root) as writers:
            for step in (1, 2, 3):
                writers.write(step, {"loss": 0.5})
    elif kind == "checkpoint":
        with Checkpoints(root) as checkpoints:
            for step in (2, 4):
                checkpoints.save(_state(step))
    else:
        fuzz_cases.CAPTURES[kind](root)
    return root


# --- captures


def check_scene(scene: Scene) -> None:
    """Raises Insane unless training can start from a scene: finite numbers of the right shapes, and what follows from them."""
    num = len(scene.names)
    _expect(num >= 2 and len(scene.images) == num and len(set(scene.names)) == num, "views")
    _expect(all(x.dtype == np.uint8 and x.ndim == 3 and x.size and x.shape[2] == 3 for x in scene.images), "images")
    for name in ("viewmats", "Ks", "points", "point_colors"):
        array = getattr(scene, name)
        _expect(array.dtype == np.float32 and np.isfinite(array).all(), name)
    rotations = scene.viewmats[:, :3, :3]
    _expect(np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-2), "rotations")
    _expect((scene.Ks[:, 0, 0] > 0).all() and (scene.Ks[:, 1, 1] > 0).all(), "focal lengths")
    _expect(((scene.point_colors >= 0) & (scene.point_colors <= 1)).all(), "colours")
    _expect(scene.depths is None or (np.isfinite(scene.depths).all() and (scene.depths > 0).all()), "depths")
    _expect(all("\n" not in note for note in scene.notes), "notes")
    " ".join(scene.notes).encode()  # as print does
    extent = scene_extent(scene.viewmats[scene.train_ids])
    _expect(np.isfinite(extent) and extent > 0 and near_plane(extent) > 0, "extent")
    points, colors = scene.points, scene.point_colors
    if len(points) == 0:
        points, colors = random_points(scene, 8, 0)
    gaussians = init_gaussians(points, colors, capacity=16 + len(points), sh_degree=1, opacity=0.1)
    _expect(all(np.isfinite(x).all() for x in jax.tree.leaves(gaussians)), "first Gaussians")
    frame = make_pose_frame(scene.viewmats[scene.train_ids], scene.Ks[scene.train_ids], scene.points, depth=extent)
    _expect(all(np.isfinite(x).all() for x in jax.tree.leaves(frame)), "pose frame")


def _expect(is_sane: Any, name: str) -> None:
    if not is_sane:
        raise Insane(name)


def _read_splat(root: pathlib.Path) -> None:
    if (root / "splat.ply").is_file():
        try:
            gaussians = read_ply(root / "splat.ply")
        except ValueError as error:
            if type(error).__name__ != "UserError" or "\n" in str(error):
                raise
        else:
            _expect(all(np.isfinite(x).all() for x in jax.tree.leaves(gaussians)), "splats")


# --- configurations and runs

SETTINGS = Settings(num_steps=12, views_per_step=2)
CAMERAS = {f"{i}.png": np.eye(4) for i in range(3)}


def _read_configuration(rng: random.Random, what: list[str]) -> None:
    tree = default_config().to_dict()
    for _ in range(rng.choice((1, 1, 2))):
        group = rng.choice([tree, tree, *(x for x in tree.values() if isinstance(x, dict))])
        key = rng.choice(list(group))
        group[key] = fuzz_cases.pick_value(rng)
        what[0] += f" {key} = {repr(group[key])[:60]}"
    settings = in_steps(read_config(tree), 1000)
    num_random_points(settings)
    json.dumps(dataclasses.asdict(settings))


def _read_workdir(root: pathlib.Path) -> None:
    read_settings(root)
    holds_run(root, SETTINGS)
    check_capture(root, CAMERAS)
    claim_capture(root, CAMERAS)
    with Writers(root, 2) as writers:
        writers.write(3, {"loss": 1.0})
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    _expect(rows[-1] == {"step": 3, "loss": 1.0}, "metrics")


@functools.cache
def _state(step: int):
    points = np.random.default_rng(step).normal(size=(10, 3)).astype(np.float32)
    gaussians = init_gaussians(points, np.abs(points) % 1, capacity=16, sh_degree=1, opacity=0.1)
    state = init_state(gaussians, jnp.arange(16) < 10, num_views=2)
    state = with_optimizers(state, make_optimizers(Optim(), None, restart=0, num_steps=10))
    return dataclasses.replace(state, step=jnp.int32(step))


def _read_checkpoint(root: pathlib.Path) -> None:
    template = jax.eval_shape(lambda: _state(4))
    with Checkpoints(root, create=False) as checkpoints:
        _check_state(checkpoints.restore(template))
        living, _, _ = checkpoints.restore_living()
        _expect(np.isfinite(living.means).all(), "living")
    with Checkpoints(root) as checkpoints:
        if hasattr(checkpoints, "resume"):
            checkpoints.resume()
        _check_state(checkpoints.restore(template))
        checkpoints.save(_state(6))
        _check_state(checkpoints.restore(template, 6))


def _check_state(state) -> None:
    whole = _state(int(state.step))
    same = [
        np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole))
    ]
    _expect(int(state.step) in (2, 4, 6) and all(same), "a state that was never saved")
