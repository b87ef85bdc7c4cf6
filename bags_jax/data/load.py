"""load_scene: a folder with photographs and camera poses, as a Scene."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from bags_jax.cache_home import find_cache_home
from bags_jax.data.capture import Capture
from bags_jax.data.formats import find_format
from bags_jax.data.images import read_photo_size, read_photos
from bags_jax.data.lens import Lens, check_lens, make_pinhole_K, undistort
from bags_jax.data.pairing import name_some
from bags_jax.data.poses import ROUNDING, locate_cameras
from bags_jax.data.scene import Scene
from bags_jax.data.split import find_holdout_every, split_by_names, split_every
from bags_jax.data.spool import Spool
from bags_jax.data.valid_pixels import FOLDER, WHITE, find_mask_files, read_valid
from bags_jax.errors import UserError

# Cameras farther from the origin than this many times their spread are moved to it. float32 keeps 1e-7 of a coordinate;
# errors of 1e-4 of the spread move pixels.
_MAX_DISTANCE = 1000.0
_MAX_COORDINATE = 1e12  # scene units: float32 holds the squares of such numbers, and sums of them


@dataclasses.dataclass(frozen=True)
class CaptureSize:
    """How large a capture is, as far as its files say without decoding a photograph."""

    num_views: int
    width: int  # of the largest photograph, px
    height: int
    num_points: int


def measure_capture(root: str | os.PathLike[str], *, format: str = "auto") -> CaptureSize:
    """Measures a capture by its poses and the headers of its photographs.

    Raises:
      UserError: as load_scene.
    """
    folder = _check_folder(root)
    capture = find_format(folder, format).read(folder, factor=1)
    width, height = max(map(read_photo_size, capture.files), key=lambda size: size[0] * size[1])
    return CaptureSize(len(capture.names), width, height, len(capture.points))


def load_scene(
    root: str | os.PathLike[str],
    *,
    format: str = "auto",
    factor: int = 1,
    holdout: int = 0,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    most_bytes: int | None = None,
) -> Scene:
    """Loads a capture: photographs, cameras, points, and which views are held out.

    Args:
      root: the scene's folder; ~ is expanded.
      format: name of a format in the table of data/formats.py, such as "colmap"; or "auto": the first format of the
        table whose marker file is in the folder.
      factor: downscale factor of the photographs; images_{factor}/ is used where it is complete.
      holdout: hold out every n-th view. 0: n of the scene's file hold=n, else 8. Lists of training and test views in
        the scene's own files take precedence.
      background: sRGB in [0, 1] behind transparent pixels.
      most_bytes: of the pictures in memory. A larger capture is kept in a temporary file of the cache folder. None: no limit.
    Returns:
      Scene. Photographs of distorting lenses are undistorted. A scene far from the origin is moved to the origin.
    Raises:
      UserError: any input that cannot be used; the message says which, and how to mend it.
    """
    _check_options(factor, holdout, background)
    try:
        return _load(_check_folder(root), format, factor, holdout, background, most_bytes)
    except OSError as error:
        if error.filename is None:
            raise
        mending = "change its permissions, or copy it" if isinstance(error, PermissionError) else "copy it"
        raise UserError(
            f"cannot read {error.filename} ({error.strerror}): expected a scene whose files and folders you may read; "
            f"{mending} to another place"
        ) from error


def _load(
    folder: pathlib.Path,
    format: str,
    factor: int,
    holdout: int,
    background: tuple[float, float, float],
    most_bytes: int | None,
) -> Scene:
    """Does the work of load_scene. Raises OSError for a file or folder that cannot be read."""
    chosen = find_format(folder, format)
    capture = chosen.read(folder, factor=factor)
    _check_views(capture, chosen.name)
    capture = _sort_views(capture)
    train_ids, test_ids, split_notes = _split(folder, capture, holdout)
    capture = _centre_exposures(capture, train_ids)
    _check_poses(capture)
    capture = _move_to_origin(capture)
    num_pixels = _check_sizes(capture) // factor**2
    has_masks = any(capture.mask_files) or (folder / FOLDER).is_dir()
    spool = _open_spool((3 + has_masks) * num_pixels, most_bytes)
    keep = spool.keep if spool else _in_memory
    images, notes = read_photos(
        capture.files,
        root=folder,
        camera_sizes=[(lens.width, lens.height) for lens in capture.lenses],
        factor=factor,
        background=background,
        keep=keep,
    )
    valid, mask_notes = _read_masks(folder, capture, images, keep)
    images, valid, Ks, lens_notes = _apply_lenses(capture, images, valid, keep)
    finite = (np.abs(capture.points) <= _MAX_COORDINATE).all(axis=-1)  # False where it is not a number
    finite &= np.isfinite(capture.point_colors).all(axis=-1)
    num_points = len(capture.points)
    num_bad = num_points - np.count_nonzero(finite)
    point_notes = (f"{num_bad} of {num_points} points are not finite or too far away, left out",) if num_bad else ()
    return Scene(
        names=capture.names,
        images=images,
        valid=valid,
        viewmats=capture.viewmats.astype(np.float32),
        Ks=Ks.astype(np.float32),
        train_ids=train_ids,
        test_ids=test_ids,
        points=capture.points[finite].astype(np.float32),
        point_colors=np.clip(capture.point_colors[finite], 0.0, 1.0).astype(np.float32),
        depths=None if capture.depths is None else capture.depths.astype(np.float32),
        background=(float(background[0]), float(background[1]), float(background[2])),
        spool=spool,
        notes=capture.notes + notes + mask_notes + lens_notes + split_notes + point_notes,
    )


def _split(
    folder: pathlib.Path, capture: Capture, holdout: int
) -> tuple[Int[np.ndarray, "_A"], Int[np.ndarray, "_B"], tuple[str, ...]]:
    """Returns the indices of training and held-out views, and notes."""
    if capture.test_names is None:
        return *split_every(len(capture.names), every=find_holdout_every(folder, holdout)), ()
    notes = ("holdout is ignored: the scene's files list the held-out views",) if holdout else ()
    return *split_by_names(capture.names, capture.test_names), notes


def _centre_exposures(capture: Capture, train_ids: Int[np.ndarray, "_A"]) -> Capture:
    """Gives training views the poses in the middle of their exposures, where the capture has them.

    Held-out views are sharp: they keep their own.
    """
    if capture.middle_viewmats is None:
        return capture
    viewmats = capture.viewmats.copy()
    viewmats[train_ids] = capture.middle_viewmats[train_ids]
    return dataclasses.replace(capture, viewmats=viewmats, middle_viewmats=None)


def _check_options(factor: int, holdout: int, background: tuple[float, float, float]) -> None:
    if not isinstance(factor, int) or factor < 1:
        raise UserError(f"factor is {factor!r}: expected a whole number >= 1, by which the photographs are shrunk")
    if not isinstance(holdout, int) or holdout < 0:
        raise UserError(f"holdout is {holdout!r}: expected a whole number >= 0; 0 means the scene's own rule")
    if len(background) != 3 or not all(0 <= channel <= 1 for channel in background):
        raise UserError(f"background is {background!r}: expected three sRGB values in [0, 1], such as (1, 1, 1)")


def _check_folder(root: str | os.PathLike[str]) -> pathlib.Path:
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(root)))
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"the scene folder {folder} {kind}: expected a folder with photographs and camera poses")
    if not any(folder.iterdir()):
        raise UserError(f"the scene folder {folder} is empty: expected photographs (images/) and camera poses")
    return folder


def _check_views(capture: Capture, format: str) -> None:
    """Raises UserError if a reader returned arrays that do not fit each other."""
    if not isinstance(capture, Capture):
        raise UserError(f"the reader of format {format} returned a {type(capture).__name__}, expected a Capture")
    counts = {name: len(getattr(capture, name)) for name in ("names", "files", "viewmats", "lenses")}
    if len(set(counts.values())) > 1 or np.shape(capture.viewmats)[1:] != (4, 4):
        raise UserError(
            f"the reader of format {format} returned {', '.join(f'{num} {name}' for name, num in counts.items())}, "
            f"viewmats of shape {np.shape(capture.viewmats)}: expected the same number of all, and viewmats (V, 4, 4)"
        )
    if capture.middle_viewmats is not None and np.shape(capture.middle_viewmats) != np.shape(capture.viewmats):
        raise UserError(
            f"the reader of format {format} returned middle_viewmats of shape {np.shape(capture.middle_viewmats)}, expected that of viewmats, {np.shape(capture.viewmats)}"
        )
    shapes = np.shape(capture.points), np.shape(capture.point_colors)
    if shapes[0] != shapes[1] or shapes[0][1:] != (3,):
        raise UserError(
            f"the reader of format {format} returned points and point_colors of shapes {shapes}: expected (P, 3) for both"
        )
    if unknown := sorted((capture.test_names or frozenset()) - set(capture.names)):
        raise UserError(f"the reader of format {format} holds out {unknown[0]}, which is none of its names")


def _sort_views(capture: Capture) -> Capture:
    """Sorts the views by name, because the published split counts in this order."""
    order = sorted(range(len(capture.names)), key=capture.names.__getitem__)
    return dataclasses.replace(
        capture,
        names=tuple(capture.names[i] for i in order),
        files=tuple(capture.files[i] for i in order),
        viewmats=capture.viewmats[order],
        lenses=tuple(capture.lenses[i] for i in order),
        middle_viewmats=None if capture.middle_viewmats is None else capture.middle_viewmats[order],
        depths=None if capture.depths is None else capture.depths[order],
        mask_files=tuple(capture.mask_files[i] for i in order) if capture.mask_files else (),
    )


def _check_poses(capture: Capture) -> None:
    for name, viewmat in zip(capture.names, capture.viewmats):
        rotation = viewmat[:3, :3]
        if not (np.abs(viewmat) <= _MAX_COORDINATE).all():  # or it is not a number
            raise UserError(
                f"the pose of view {name} is not finite: expected numbers up to {_MAX_COORDINATE:g}; estimate it again, or "
                "remove the view"
            )
        # 1e-3: json and npy files carry poses with few digits.
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
            raise UserError(
                f"the pose of view {name} is no rotation and translation (determinant {np.linalg.det(rotation):.4g}): "
                f"expected right-handed, unscaled camera axes; remove the scale from its matrix, or the view"
            )


def _move_to_origin(capture: Capture) -> Capture:
    """Moves a distant scene (map coordinates) to the origin, in float64, because float32 would displace its cameras."""
    centers = locate_cameras(capture.viewmats)
    middle = np.median(centers, axis=0)  # medians ignore one lost camera at the origin
    spread = float(np.median(np.linalg.norm(centers - middle, axis=1)))
    distance = float(np.linalg.norm(middle))
    if spread <= ROUNDING * distance:  # photographs from a tripod have no scale; scene/initialize.py uses 1, too
        spread = 1.0
    if distance <= _MAX_DISTANCE * spread:
        return capture
    step = 10.0 ** math.floor(math.log10(spread))  # a round number is easier to add back
    origin = np.rint(middle / step) * step
    viewmats = capture.viewmats.copy()
    viewmats[:, :3, 3] += capture.viewmats[:, :3, :3] @ origin
    place = ", ".join(f"{x:.12g}" for x in origin)
    note = (
        f"the scene lies {distance:.3g} units from the origin, where 32-bit numbers are too coarse, and was moved: "
        f"add ({place}) to exported positions to get the capture's own"
    )
    points = capture.points - origin
    return dataclasses.replace(capture, viewmats=viewmats, points=points, notes=capture.notes + (note,))


def _in_memory(array: np.ndarray) -> np.ndarray:
    return array


def _open_spool(num_bytes: int, most_bytes: int | None) -> Spool | None:
    """The temporary file for pictures of so many bytes; None: they are kept in memory."""
    if most_bytes is None or num_bytes <= most_bytes:
        return None
    try:
        return Spool(find_cache_home() / "photographs")
    except RuntimeError as error:  # no home folder
        raise UserError("the photographs do not fit into memory: set XDG_CACHE_HOME to a folder for them") from error


def _read_masks(
    folder: pathlib.Path, capture: Capture, images: tuple[np.ndarray, ...], keep: Callable[[np.ndarray], np.ndarray]
) -> tuple[tuple[np.ndarray, ...] | None, tuple[str, ...]]:
    """Returns the valid pixels of each picture, None where there are no masks, and notes for the user."""
    files, notes = (capture.mask_files, ()) if capture.mask_files else find_mask_files(folder, capture.names)
    if not any(files):
        return None, notes
    valid = []
    for name, photo, file, image in zip(capture.names, capture.files, files, images, strict=True):
        height, width = image.shape[:2]
        valid.append(keep(read_valid(file, full_size=read_photo_size(photo), height=height, width=width)))
        if not valid[-1].any():
            raise UserError(
                f"the mask {file} leaves no pixel of {name}: expected white where pixels are used; invert it"
            )
    share = 1 - float(np.mean([pixels.mean() for pixels in valid]))
    return tuple(valid), (*notes, f"masks leave out {share:.1%} of the pixels (white is used, black is left out)")


def _apply_lenses(
    capture: Capture,
    images: tuple[np.ndarray, ...],
    valid: tuple[np.ndarray, ...] | None,
    keep: Callable[[np.ndarray], np.ndarray],
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...] | None, Float[np.ndarray, "V 3 3"], tuple[str, ...]]:
    """Undistorts the pictures of lenses that distort, and their valid pixels. Returns their intrinsics (px) and notes."""
    flat_images, Ks, undistorted, flat_valid = [], [], [], list(valid) if valid else None
    for view, (name, lens, image) in enumerate(zip(capture.names, capture.lenses, images)):
        height, width = image.shape[:2]
        K = make_pinhole_K(lens, width=width, height=height)
        _check_shape(name, lens, width, height)
        if K is None:
            if flat_valid:
                white = np.repeat(np.where(flat_valid[view], np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)
                flat_valid[view] = keep(undistort(white, lens)[0][..., 0] >= WHITE)
            image, K = undistort(image, lens)
            image = keep(image)
            undistorted.append(name)
        flat_images.append(image)
        Ks.append(K)
    notes = (f"{len(undistorted)} photographs were undistorted: {name_some(undistorted)}",) if undistorted else ()
    return tuple(flat_images), tuple(flat_valid) if flat_valid else None, np.stack(Ks), notes


def _check_sizes(capture: Capture) -> int:
    """Compares the headers of the photographs with their cameras, before a picture is decoded: that may take gigabytes.

    Returns the number of pixels of all photographs.
    """
    num_pixels = 0
    for name, file, lens in zip(capture.names, capture.files, capture.lenses, strict=True):
        check_lens(lens)
        width, height = read_photo_size(file)
        _check_shape(name, lens, width, height)
        num_pixels += width * height
    return num_pixels


def _check_shape(name: str, lens: Lens, width: int, height: int) -> None:
    """Raises UserError for a photograph of another aspect ratio than its camera: it was cropped or rotated."""
    expected_height = width * lens.height / lens.width
    # Rounding to whole pixels moves either side by up to 1 px; 2 % is far less than any crop or rotation that matters.
    slack = max(0.02 * height, 1.0 + math.ceil(lens.height / lens.width))
    if abs(expected_height - height) > slack:
        raise UserError(
            f"photograph {name} is {width} x {height} but its camera {lens.width} x {lens.height}: expected the same "
            f"shape at any size; use the pictures that the poses were estimated from (not cropped, not rotated)"
        )
