"""RealX3D scenes: blurred photographs in train/, sharp held-out ones in test/, their COLMAP model in sparse/0.

The folder of a scene is data_4/CONDITION/SCENE (a quarter of the size) or data/CONDITION/SCENE. Not read: val/ (the sharp twins
of train/, under the same names) and transforms_*.json, whose poses are in another, scaled frame than the model and its points.
Poses of the conditions with motion are those of the END of the exposure: data.shutter_anchor.
"""

import pathlib

import numpy as np

from bags_jax.data.capture import Capture
from bags_jax.data.colmap import find_model, has_model, read_model
from bags_jax.data.pairing import describe_unpaired, list_photos, name_some
from bags_jax.errors import UserError

TRAIN, TEST = "train", "test"


def is_realx3d(root: pathlib.Path) -> bool:
    """True for a folder with train/, test/ and a COLMAP model, and without images/."""
    folders = (root / TRAIN).is_dir() and (root / TEST).is_dir()
    return folders and not (root / "images").is_dir() and has_model(root)


def read_realx3d(root: pathlib.Path, *, factor: int = 1) -> Capture:
    """Reads the poses, lenses and points of a RealX3D scene. The photographs in test/ are held out.

    Args:
      root: the scene's folder.
      factor: not used: `load_scene` shrinks the photographs.
    Raises:
      UserError: a folder or the model is missing, or photographs and model do not belong together.
    """
    del factor
    photos = {}
    for name in (TRAIN, TEST):
        if not (found := list_photos(root / name)):
            raise UserError(
                f"{root / name} is missing or has no photographs: a RealX3D scene is {TRAIN}/ (blurred), {TEST}/ (sharp, held "
                "out) and sparse/0; unpack the whole scene, data_4/CONDITION/SCENE"
            )
        photos |= {f"{name}/{photo}": path for photo, path in found.items()}
    if (model := find_model(root)) is None:
        raise UserError(
            f"{root} has no COLMAP model, expected sparse/0 beside {TRAIN}/ and {TEST}/: unpack the whole scene"
        )
    posed, points, colors = read_model(model)
    pairs, lost = _pair(posed.keys(), photos)
    for name in (TRAIN, TEST):
        if not any(photo.startswith(f"{name}/") for photo in pairs):
            raise UserError(
                f"none of the {len(posed)} images of {model} is in {root / name} (the model has {min(posed)}): expected the "
                "same names; unpack the scene again"
            )
    return Capture(
        names=tuple(pairs),
        files=tuple(photos[photo] for photo in pairs),
        viewmats=np.stack([posed[name][0] for name in pairs.values()]),
        lenses=tuple(posed[name][1] for name in pairs.values()),
        points=points,
        point_colors=colors,
        test_names=frozenset(photo for photo in pairs if photo.startswith(f"{TEST}/")),
        notes=describe_unpaired(lost, sorted(photos.keys() - pairs.keys())),
    )


def _pair(posed, photos: dict[str, pathlib.Path]) -> tuple[dict[str, str], list[str]]:
    """The name in the model of each photograph with a pose, and the names in the model without a photograph.

    A name in the model has its folder or, as in the data set, none: then only one of the folders may have it.

    Raises:
      UserError: train/ and test/ share a name.
    """
    pairs: dict[str, str] = {}
    shared, lost = [], []
    for name in sorted(posed):
        whole = [name] if name in photos else [f"{folder}/{name}" for folder in (TRAIN, TEST)]
        found = [photo for photo in whole if photo in photos]
        shared += [name] if len(found) > 1 else []
        lost += [] if found else [name]
        pairs |= dict.fromkeys(found, name)
    if shared:
        raise UserError(
            f"{name_some(shared)} could be in {TRAIN}/ or {TEST}/, expected each name of the model in one of them: remove the "
            "other photograph"
        )
    return pairs, lost
