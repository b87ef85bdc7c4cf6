"""NeRF's synthetic scenes: transforms_train.json and transforms_test.json (Mildenhall et al. 2020)."""

import pathlib

from bags_jax.data.capture import Capture
from bags_jax.data.transforms import list_frames, make_capture, read_transforms

TRAIN_FILE, TEST_FILE = "transforms_train.json", "transforms_test.json"


def read_blender(root: pathlib.Path, *, factor: int = 1) -> Capture:
    """Reads a Blender scene; transforms_val.json is ignored. Without transforms_test.json the published rule splits.

    NeRF's files give camera_angle_x alone; files of other programs may have all entries of nerfstudio's.

    Args:
      root: the scene's folder.
      factor: without effect, because the files name each picture.
    Raises:
      UserError: unreadable or incomplete json, an unknown lens, or no picture at all.
    """
    del factor
    train_file, test_file = root / TRAIN_FILE, root / TEST_FILE
    frames = list_frames(root, read_transforms(train_file), train_file)
    test_frames = list_frames(root, read_transforms(test_file), test_file) if test_file.is_file() else None
    return make_capture(root, frames + (test_frames or []), test_frames=test_frames)
