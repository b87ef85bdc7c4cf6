"""A working directory belongs to one capture."""

import numpy as np
import pytest

from bags_jax.errors import UserError
from bags_jax.workdir import CAPTURE_FILE, check_capture, claim_capture


@pytest.fixture
def cameras():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, 3] = np.random.default_rng(0).normal(size=(3, 3))
    return {f"{i}.png": pose for i, pose in enumerate(poses)}


def test_the_same_capture_goes_on(tmp_path, cameras):
    check_capture(tmp_path, cameras)  # a run of before it was noted
    claim_capture(tmp_path, cameras)
    claim_capture(tmp_path, {name: pose.astype(np.float32) for name, pose in cameras.items()})
    assert set(tmp_path.iterdir()) == {tmp_path / CAPTURE_FILE}


def test_other_photographs_and_other_poses_do_not(tmp_path, cameras):
    """A new reconstruction has its own axes, origin and unit: the old scene means nothing there."""
    claim_capture(tmp_path, cameras)
    renamed = {name.replace("0", "7"): pose for name, pose in cameras.items()}
    with pytest.raises(
        UserError, match=r"other photographs: 0\.png is in one of the two alone; bring the capture back"
    ):
        claim_capture(tmp_path, renamed)
    moved = {name: np.diag([1.01, 1.01, 1.01, 1.0]) @ pose for name, pose in cameras.items()}
    with pytest.raises(UserError, match="other poses: the camera of .* has moved since"):
        claim_capture(tmp_path, moved)
    (tmp_path / CAPTURE_FILE).write_text('{"0.png": [1, 2')
    with pytest.raises(UserError, match="cannot be read"):
        check_capture(tmp_path, cameras)
