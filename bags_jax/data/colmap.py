"""COLMAP models, text and binary, and the undistortion of photographs taken with any of its lens models."""

import functools
import pathlib
import struct
from types import ModuleType

import numpy as np
from jaxtyping import Float, UInt8

from bags_jax.data.images import Capture, Lens, find_photo_folder, list_photos, match_photos, pairing_notes
from bags_jax.errors import UserError

# Focal lengths of the models that are a pinhole when their distortion coefficients (all that follows f and c) are 0.
_NUM_FOCALS = {"SIMPLE_PINHOLE": 1, "SIMPLE_RADIAL": 1, "RADIAL": 1, "PINHOLE": 2, "OPENCV": 2, "FULL_OPENCV": 2}
_PLANAR_ONLY = ("EQUIRECTANGULAR",)  # models that no planar image can hold; pycolmap would return the input unchanged
_UNDISTORT_COMMAND = "colmap image_undistorter --image_path images --input_path sparse/0 --output_path undistorted"
# Pixels of an undistorted image without a source. Some at its border are only interpolation.
_MAX_BLANK = 0.02
_MODEL_FILES = ("cameras", "images", "points3D")


def find_model(root: pathlib.Path) -> pathlib.Path | None:
    """The folder of the COLMAP model: sparse/0, sparse or colmap/sparse/0, whichever has one of its files first."""
    for folder in (root / "sparse" / "0", root / "sparse", root / "colmap" / "sparse" / "0"):
        if any((folder / f"{name}{suffix}").is_file() for name in _MODEL_FILES for suffix in (".bin", ".txt")):
            return folder
    return None


def read_colmap(root: pathlib.Path, *, factor: int = 1) -> Capture:
    """Reads the poses, lenses and points of a COLMAP reconstruction.

    Args:
      root: the scene's folder.
      factor: only tells which folder of pictures may stand in for images/.
    Raises:
      UserError: no model, a damaged one, or no picture with a pose.
    """
    model = find_model(root)
    if model is None:
        raise UserError(f"{root} has no COLMAP model: expected sparse/0 with {', '.join(_MODEL_FILES)} (.bin or .txt)")
    posed, points, colors = _read_model(model)
    folder = find_photo_folder(root, factor)
    photos = list_photos(folder)
    pairs = match_photos(sorted(posed), photos)
    if not pairs:
        raise UserError(
            f"none of the {len(posed)} images of {model} is in {folder} (the model has {min(posed)}, the folder "
            f"{next(iter(photos))}): expected the same names up to the suffix; rename the pictures or run COLMAP again"
        )
    # Sorted by the file's name, as the published split is.
    found = sorted((photo, name) for name, photo in pairs.items())
    notes = pairing_notes(sorted(set(posed) - set(pairs)), sorted(set(photos) - set(pairs.values())))
    siblings = [path.name for path in model.parent.iterdir() if path.is_dir() and path.name.isdigit()]
    if model.name == "0" and len(siblings) > 1:
        notes += (f"COLMAP made {len(siblings)} separate models: only {model} is read",)
    return Capture(
        names=tuple(photo for photo, _ in found),
        files=tuple(photos[photo] for photo, _ in found),
        viewmats=np.stack([posed[name][0] for _, name in found]),
        lenses=tuple(posed[name][1] for _, name in found),
        points=points,
        point_colors=colors,
        notes=notes,
    )


def pinhole_K(lens: Lens, *, width: int, height: int) -> Float[np.ndarray, "3 3"] | None:
    """Intrinsics (px, pixel centres at +0.5) of a width x height copy of the lens' picture; None if the lens distorts.

    Raises:
      UserError: the lens has parameters that are not finite, or no positive focal length and size.
    """
    if min(lens.width, lens.height) < 1 or not np.isfinite(lens.params).all():
        raise _bad_lens(lens)
    num_focals = _NUM_FOCALS.get(lens.model)
    if num_focals is None or any(lens.params[num_focals + 2 :]):
        return None
    fx, fy, (cx, cy) = lens.params[0], lens.params[num_focals - 1], lens.params[num_focals : num_focals + 2]
    if min(fx, fy) <= 0:
        raise _bad_lens(lens)
    # With pixel centres at +0.5 a coordinate scales with the image: no half pixels to correct.
    x_scale, y_scale = width / lens.width, height / lens.height
    return np.array([[fx * x_scale, 0, cx * x_scale], [0, fy * y_scale, cy * y_scale], [0, 0, 1]])


def undistort(
    image: UInt8[np.ndarray, "_H _W 3"], lens: Lens
) -> tuple[UInt8[np.ndarray, "_h _w 3"], Float[np.ndarray, "3 3"]]:
    """Resamples a photograph as a pinhole camera would have taken it; its size changes so that no pixel is blank.

    Args:
      image: a copy, at any size, of the picture that the lens' parameters belong to.
      lens: any of COLMAP's models.
    Returns:
      The image and its intrinsics (px, pixel centres at +0.5).
    Raises:
      UserError: pycolmap cannot do it, or the coefficients are so large that parts of the result stay blank.
    """
    pycolmap = _import_pycolmap()
    height, width = image.shape[:2]
    refused = f"cannot undistort the lens {lens.model} {list(lens.params)} here"
    advice = f"calibrate again, or undistort with COLMAP itself ({_UNDISTORT_COMMAND}) and load the result"
    if lens.model in _PLANAR_ONLY:
        raise UserError(f"{refused}: it sees more than an image plane can show; expected a perspective or fisheye lens")
    try:
        options = pycolmap.UndistortCameraOptions()
        camera = pycolmap.Camera(model=lens.model, width=lens.width, height=lens.height, params=list(lens.params))
        camera.rescale(width, height)
        bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(image))
        undistorted, pinhole = pycolmap.undistort_image(options, bitmap, camera)
        result, K = undistorted.to_array(), np.asarray(pinhole.calibration_matrix(), np.float64)
    except Exception as error:  # pycolmap raises RuntimeError, ValueError, IndexError ...
        raise UserError(f"{refused} ({_one_line(error)}): {advice}") from error
    blank = _blank_fraction(lens, width, height)
    if blank > _MAX_BLANK:
        raise UserError(f"{refused}: {blank:.0%} of the undistorted image would be blank; {advice}")
    return result, K


@functools.lru_cache(maxsize=256)
def _blank_fraction(lens: Lens, width: int, height: int) -> float:
    """The share of an undistorted image that has no source pixel: what stays dark of a white photograph."""
    pycolmap = _import_pycolmap()
    camera = pycolmap.Camera(model=lens.model, width=lens.width, height=lens.height, params=list(lens.params))
    camera.rescale(width, height)
    white = pycolmap.Bitmap.from_array(np.full((height, width, 3), 255, np.uint8))
    undistorted, _ = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), white, camera)
    return float((undistorted.to_array() < 250).mean())


def _import_pycolmap() -> ModuleType:
    # Heavy, so only where it is used; and only after PIL, which images.py imports: the other way round, the two copies
    # of libpng meet and saving a PNG aborts the process.
    import pycolmap

    return pycolmap


def _bad_lens(lens: Lens) -> UserError:
    return UserError(
        f"the camera {lens.model} {lens.width} x {lens.height} with parameters {list(lens.params)} is impossible: "
        f"expected positive sizes and focal lengths, and finite numbers; estimate the cameras again"
    )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _read_model(
    model: pathlib.Path,
) -> tuple[dict[str, tuple[np.ndarray, Lens]], Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3"]]:
    """(viewmat, lens) by image name, points and their colours (sRGB in [0, 1])."""
    binary = any((model / f"{name}.bin").is_file() for name in _MODEL_FILES)
    suffix = ".bin" if binary else ".txt"
    for name in _MODEL_FILES:
        if not (model / (name + suffix)).is_file():
            raise UserError(
                f"{model / (name + suffix)} is missing: a COLMAP model is {', '.join(_MODEL_FILES)}{suffix}"
            )
    if binary:
        _check_binary(model)
    pycolmap = _import_pycolmap()
    reconstruction = pycolmap.Reconstruction()
    try:
        if binary:
            reconstruction.read_binary(model)
        else:
            reconstruction.read_text(model)
        posed = {}
        for image in reconstruction.images.values():
            if image.has_pose:
                camera = reconstruction.cameras[image.camera_id]
                lens = Lens(camera.model.name, camera.width, camera.height, tuple(camera.params.tolist()))
                viewmat = np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]])
                posed[image.name] = (viewmat, lens)
        # Sorted: pycolmap's order is that of a hash table, and runs must repeat.
        points = [point for _, point in sorted(reconstruction.points3D.items())]
        xyz = np.array([point.xyz for point in points], np.float64).reshape(-1, 3)
        colors = np.array([point.color for point in points], np.float64).reshape(-1, 3) / 255
    except Exception as error:  # pycolmap turns its checks into IndexError, ValueError, RuntimeError ...
        raise _damaged(model, _one_line(error)) from error
    if not posed:
        raise UserError(f"{model} has no image with a pose: expected registered images; run COLMAP's mapper again")
    return posed, xyz, colors


def _damaged(path: pathlib.Path, reason: str) -> UserError:
    return UserError(
        f"the COLMAP model {path} is damaged ({reason}): expected complete files of one reconstruction; copy them "
        f"again, or run COLMAP again"
    )


def _check_binary(model: pathlib.Path) -> None:
    """Walks over the records of each file: pycolmap reads past a truncated end, some of it wrongly, some of it forever.

    Raises:
      UserError: a file does not end where its last record does.
    """
    walks = {
        "cameras": _end_of_cameras,
        "rigs": _end_of_rigs,  # rigs and frames: COLMAP >= 3.12
        "frames": _end_of_frames,
        "images": _end_of_images,
        "points3D": _end_of_points,
    }
    for name, walk in walks.items():
        path = model / f"{name}.bin"
        if not path.is_file():
            continue
        data = path.read_bytes()
        try:
            end = walk(data)
        except (struct.error, ValueError) as error:  # the end came before the last record did
            raise _damaged(path, "cut short, or not COLMAP's format") from error
        if end != len(data):
            raise _damaged(path, f"{len(data)} bytes where its records need {end}")


def _end_of_cameras(data: bytes) -> int:
    """cameras.bin: count; per camera id u32, model i32, width u64, height u64, the model's parameters f64."""
    pycolmap = _import_pycolmap()
    offset = 8
    for _ in range(_unpack("<Q", data, 0)[0]):
        camera_id, model_id, width, height = _unpack("<IiQQ", data, offset)
        if not 0 < width < 2**31 or not 0 < height < 2**31:
            raise ValueError(f"camera {camera_id} is {width} x {height} px")
        # Raises ValueError for a model that COLMAP does not have.
        params = pycolmap.Camera.create_from_model_id(camera_id, pycolmap.CameraModelId(model_id), 1.0, 1, 1).params
        offset += 24 + 8 * len(params)
    return offset


def _end_of_rigs(data: bytes) -> int:
    """rigs.bin: count; per rig id u32, sensors u32; a reference (type i32, id u32); others and their poses."""
    offset = 8
    for _ in range(_unpack("<Q", data, 0)[0]):
        _, num_sensors = _unpack("<II", data, offset)
        offset += 8 + (8 if num_sensors else 0)
        for _ in range(num_sensors - 1):
            (has_pose,) = _unpack("<8xB", data, offset)
            offset += 9 + (56 if has_pose else 0)
    return offset


def _end_of_frames(data: bytes) -> int:
    """frames.bin: count; per frame id u32, rig u32, pose 7 f64, count u32 of data ids (type i32, sensor u32, id u64)."""
    offset = 8
    for _ in range(_unpack("<Q", data, 0)[0]):
        (num_ids,) = _unpack("<64xI", data, offset)
        offset += 68 + 16 * num_ids
    return offset


def _end_of_images(data: bytes) -> int:
    """images.bin: count; per image id u32, pose 7 f64, camera u32, name ending in 0, count u64 of (x f64, y f64, id)."""
    offset = 8
    for _ in range(_unpack("<Q", data, 0)[0]):
        end_of_name = data.index(b"\0", offset + 64)
        (num_points,) = _unpack("<Q", data, end_of_name + 1)
        offset = end_of_name + 9 + 24 * num_points
    return offset


def _end_of_points(data: bytes) -> int:
    """points3D.bin: count; per point id u64, xyz 3 f64, rgb 3 u8, error f64, count u64 of (image u32, index u32)."""
    offset = 8
    for _ in range(_unpack("<Q", data, 0)[0]):
        (track_length,) = _unpack("<43xQ", data, offset)
        offset += 51 + 8 * track_length
    return offset


def _unpack(layout: str, data: bytes, offset: int) -> tuple[int, ...]:
    """struct.unpack_from, with struct.error for an offset of any size past the end."""
    if offset > len(data):
        raise struct.error("past the end")
    return struct.unpack_from(layout, data, offset)
