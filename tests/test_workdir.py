"""A working directory belongs to one configuration and one capture."""

import dataclasses
import json
import re

import numpy as np
import pytest

from bags_jax.errors import UserError
from bags_jax.settings import Data, Loss, Settings
from bags_jax.workdir import (
    CAPTURE_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    FREE,
    check_capture,
    claim_capture,
    claim_workdir,
    holds_run,
    read_settings,
    saved_views_per_step,
)

SETTINGS = Settings(num_steps=12, views_per_step=3, data=Data(background=(1.0, 0.5, 0.0)), loss=Loss(depth_tv=0.25))


def assert_refused(path, match):
    for function in (read_settings, lambda path: claim_workdir(path, SETTINGS)):
        with pytest.raises(UserError, match=match) as caught:
            function(path)
        assert "\n" not in str(caught.value)


def rewrite(path, **changes):
    """Changes fields of a saved configuration; None removes one."""
    fields = json.loads((path / CONFIG_FILE).read_text()) | changes
    (path / CONFIG_FILE).write_text(json.dumps({name: x for name, x in fields.items() if x is not None}))


def test_settings_are_saved_and_read_back(tmp_path):
    path = claim_workdir(tmp_path / "new" / "run", SETTINGS)
    assert path == tmp_path / "new" / "run" and list(path.iterdir()) == [path / CONFIG_FILE]
    fields = json.loads((path / CONFIG_FILE).read_text())
    assert fields["format_version"] == FORMAT_VERSION and fields["data"]["background"] == [1.0, 0.5, 0.0]
    assert read_settings(path) == SETTINGS and holds_run(path, SETTINGS)
    assert saved_views_per_step(path) == 3
    before = (path / CONFIG_FILE).read_bytes()
    claim_workdir(path, SETTINGS)
    assert (path / CONFIG_FILE).read_bytes() == before


def test_an_empty_directory_holds_no_run(tmp_path):
    assert not holds_run(tmp_path, SETTINGS) and saved_views_per_step(tmp_path) == 0
    with pytest.raises(UserError, match=f"no {CONFIG_FILE} in --workdir=.*, expected the folder of a training run"):
        read_settings(tmp_path)


def test_other_settings_are_refused_by_name(tmp_path):
    path = claim_workdir(tmp_path, SETTINGS)
    other = dataclasses.replace(SETTINGS, loss=Loss(depth_tv=0.5))
    with pytest.raises(UserError, match=r"another configuration: loss.depth_tv is 0.25 there and 0.5 here: choose"):
        claim_workdir(path, other)
    with pytest.raises(
        UserError, match=r"loss.depth_tv is 0.25 there .* \(2 fields differ\): choose another --workdir"
    ):
        holds_run(path, dataclasses.replace(other, seed=1))
    assert read_settings(path) == SETTINGS


@pytest.mark.parametrize("name", FREE)
def test_a_run_may_go_on_with_other_values_of_some_settings(tmp_path, name):
    path = claim_workdir(tmp_path, SETTINGS)
    value = vars(SETTINGS)[name]
    other = "elsewhere" if isinstance(value, str) else not value if isinstance(value, bool) else 7
    assert holds_run(claim_workdir(path, dataclasses.replace(SETTINGS, **{name: other})), SETTINGS)


@pytest.mark.parametrize("version, name", [(None, "1"), (FORMAT_VERSION + 1, str(FORMAT_VERSION + 1)), ("x", "x")])
def test_other_format_versions_are_refused(tmp_path, version, name):
    rewrite(claim_workdir(tmp_path, SETTINGS), format_version=version)
    expected = (
        f"has format {name}, this version of bags-jax reads format {FORMAT_VERSION}: train again in another --workdir"
    )
    assert_refused(tmp_path, expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"density": None}, "config.density is missing"),
        ({"later": 1}, "has no field later"),
        ({"num_steps": -1}, "config.num_steps is -1, expected at least 0"),
        ({"loss": {**dataclasses.asdict(SETTINGS.loss), "width": 0.1}}, "has no field loss.width"),
    ],
)
def test_settings_of_another_version_are_refused(tmp_path, changes, message):
    rewrite(claim_workdir(tmp_path, SETTINGS), **changes)
    expected = rf"{CONFIG_FILE} does not fit the settings of this version of bags-jax \(.*{re.escape(message)}.*\): train again"
    assert_refused(tmp_path, expected)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read"),
        ("\xff", "cannot be read"),
        ("[1]", "no configuration"),
        ('{"a": 1}', "no configuration"),
    ],
)
def test_damaged_settings_are_refused(tmp_path, text, message):
    (tmp_path / CONFIG_FILE).write_bytes(text.encode("latin-1"))
    assert_refused(tmp_path, f"{message}.*choose another --workdir")
    with pytest.raises(UserError, match=message):
        saved_views_per_step(tmp_path)


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        claim_workdir(tmp_path / "file" / "run", SETTINGS)


@pytest.fixture
def cameras():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, 3] = np.random.default_rng(0).normal(size=(3, 3))
    return {f"{i}.png": pose for i, pose in enumerate(poses)}


def test_the_same_capture_goes_on(tmp_path, cameras):
    check_capture(tmp_path, cameras)  # a run that has not started yet
    claim_capture(tmp_path, cameras)
    claim_capture(tmp_path, {name: pose.astype(np.float32) for name, pose in cameras.items()})
    assert set(tmp_path.iterdir()) == {tmp_path / CAPTURE_FILE}


def test_other_photographs_and_other_poses_are_refused(tmp_path, cameras):
    """A new reconstruction has axes, an origin and a unit of its own: the trained scene does not fit it."""
    claim_capture(tmp_path, cameras)
    renamed = {name.replace("0", "7"): pose for name, pose in cameras.items()}
    with pytest.raises(UserError, match=r"other photographs: 0\.png is in one of the two alone; restore the capture"):
        claim_capture(tmp_path, renamed)
    moved = {name: np.diag([1.01, 1.01, 1.01, 1.0]) @ pose for name, pose in cameras.items()}
    with pytest.raises(UserError, match="other poses: the camera of .* has moved since"):
        claim_capture(tmp_path, moved)
    (tmp_path / CAPTURE_FILE).write_text('{"0.png": [1, 2')
    with pytest.raises(UserError, match="cannot be read"):
        check_capture(tmp_path, cameras)
