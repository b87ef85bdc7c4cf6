"""LLFF scenes: images/ and poses_bounds.npy (Mildenhall et al. 2019, and the captures of Deblur-NeRF and ExBluRF)."""

import pathlib

import numpy as np
from jaxtyping import Float

from bags_jax.data.capture import Capture
from bags_jax.data.lens import Lens
from bags_jax.data.pairing import find_photo_folder, list_photos
from bags_jax.data.poses import find_middle
from bags_jax.errors import UserError

POSES_FILE = "poses_bounds.npy"
PATHS_FILE = "poses_bounds_subframes.npy"  # of ExBluRF's synthetic scenes
MAX_DEPTH = 1e12  # scene units; larger bounds are no bounds
_MAX_SIDE = 1e9  # px


def read_llff(root: pathlib.Path, *, factor: int = 1) -> Capture:
    """Reads the poses of an LLFF scene.

    A row holds a matrix [3, 5] and two depth bounds. The columns of the matrix are the camera's down, right and
    backward axes (world frame), the camera centre, and (height, width, focal length) in px. The principal point is the
    image centre. The bounds are ignored unless 0 < near < far in all rows.

    Where PATHS_FILE is beside it, an array [views, S, 17] of such rows at S equal steps through each exposure, training views
    get the pose in its middle.

    Args:
      root: the scene's folder.
      factor: images_{factor}/ may replace a missing images/.
    Raises:
      UserError: unreadable file, wrong shape, no pictures, or not one picture for each pose.
    """
    path = root / POSES_FILE
    rows = _read_rows(path, "[views, 17]")
    photos = list_photos(folder := find_photo_folder(root, factor))
    if len(photos) != len(rows):
        raise UserError(
            f"{path} has {len(rows)} poses and {folder} {len(photos)} pictures: expected one picture for each pose, "
            f"because LLFF pairs them in the order of names; remove the extra pictures or run LLFF's imgs2poses again"
        )
    poses, bounds = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
    if not ((poses[:, :, 4] > 0) & (poses[:, :, 4] <= _MAX_SIDE)).all():  # False where it is not a number
        raise UserError(
            f"{path} has a height, width or focal length that is no size in px, expected more than 0: run LLFF's imgs2poses again"
        )
    middles, notes = _read_middles(root / PATHS_FILE, len(rows))
    lenses = [
        Lens("PINHOLE", round(width), round(height), (focal, focal, width / 2, height / 2))
        for height, width, focal in poses[:, :, 4].tolist()
    ]
    return Capture(
        names=tuple(photos),
        files=tuple(photos.values()),
        viewmats=_make_viewmats(rows),
        lenses=tuple(lenses),
        notes=notes,
        middle_viewmats=middles,
        depths=bounds if _are_depths(bounds) else None,
    )


def _make_viewmats(rows: Float[np.ndarray, "V 17"]) -> Float[np.ndarray, "V 4 4"]:
    poses = rows[:, :15].reshape(-1, 3, 5)
    down, right, back, centers = (poses[:, :, i] for i in range(4))
    world_from_cam = np.stack([right, down, -back], axis=-1)
    viewmats = np.tile(np.eye(4), (len(rows), 1, 1))
    viewmats[:, :3, :3] = world_from_cam.transpose(0, 2, 1)
    viewmats[:, :3, 3] = -np.einsum("vij,vi->vj", world_from_cam, centers)
    return viewmats


def _read_middles(path: pathlib.Path, num_views: int) -> tuple[Float[np.ndarray, "V 4 4"] | None, tuple[str, ...]]:
    """The pose in the middle of each exposure, and a note; None without a file of the poses during the exposures."""
    if not path.is_file():
        return None, ()
    rows = _read_rows(path, "[views, poses in the exposure, 17]")
    if len(rows) != num_views:
        raise UserError(f"{path} has {len(rows)} views, {POSES_FILE} {num_views}: expected the same; copy both again")
    viewmats = _make_viewmats(rows.reshape(-1, 17)).reshape(*rows.shape[:2], 4, 4)
    note = f"poses of training views are those in the middle of their {rows.shape[1]} poses in {path.name}"
    return np.stack([find_middle(path_of_view) for path_of_view in viewmats]), (note,)


def _are_depths(bounds: Float[np.ndarray, "V 2"]) -> bool:
    bounds = np.where(np.abs(bounds) <= MAX_DEPTH, bounds, np.nan).astype(np.float32)
    nearest, farthest = bounds.T
    return bool(np.isfinite(bounds).all() and (nearest > 0).all() and (farthest > nearest).all())


def _read_rows(path: pathlib.Path, shape: str) -> np.ndarray:
    expected = f"expected an array {shape} of numbers, as LLFF's imgs2poses writes it"
    num_axes = shape.count(",") + 1
    if not path.is_file():
        raise UserError(f"{path} is missing: {expected}")
    try:
        rows = np.load(path, allow_pickle=False)
    except PermissionError:
        raise
    except Exception as error:  # damaged headers raise ValueError, EOFError, SyntaxError or tokenize.TokenError
        raise UserError(f"cannot read {path} ({' '.join(str(error).split())}): {expected}") from error
    if (
        not isinstance(rows, np.ndarray)
        or rows.ndim != num_axes
        or rows.shape[-1] != 17
        or rows.dtype.kind not in "fiu"
    ):
        raise UserError(f"{path} holds {getattr(rows, 'shape', 'several arrays')}: {expected}")
    if not rows.size:
        raise UserError(f"{path} holds no pose: {expected}")
    return rows.astype(np.float64)
