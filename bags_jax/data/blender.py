"""NeRF's synthetic scenes: transforms_train.json, transforms_test.json (Mildenhall et al. 2020)."""

import pathlib

from bags_jax.data.images import Capture, pairing_notes
from bags_jax.data.transforms import find_frame_photos, frame_lens, frame_viewmat, frames_capture, read_transforms

TRAIN_FILE, TEST_FILE = "transforms_train.json", "transforms_test.json"


def read_blender(root: pathlib.Path) -> Capture:
    """Reads a Blender scene; transforms_val.json is ignored. Without transforms_test.json the published rule splits.

    NeRF's files give camera_angle_x alone; those of other programs may have all that nerfstudio's have.

    Raises:
      UserError: unreadable or incomplete json, a lens that is none of the known ones, or no picture at all.
    """
    paths, viewmats, lenses, missing, test_paths = [], [], [], [], []
    for json_name in (TRAIN_FILE, TEST_FILE):
        json_path = root / json_name
        if json_name == TEST_FILE and not json_path.is_file():
            continue
        transforms = read_transforms(json_path)
        photos = find_frame_photos(root, transforms["frames"], json_path)
        for index, (frame, path) in enumerate(zip(transforms["frames"], photos)):
            if path is None:
                missing.append(frame["file_path"])
                continue
            where = f"{json_path}, frame {index}"
            paths.append(path)
            viewmats.append(frame_viewmat(frame, where))
            lenses.append(frame_lens({**transforms, **frame}, path, where))
            if json_name == TEST_FILE:
                test_paths.append(path)
    return frames_capture(
        root,
        paths,
        viewmats,
        lenses,
        test_paths=test_paths if (root / TEST_FILE).is_file() else None,
        notes=pairing_notes(missing, ()),
    )
