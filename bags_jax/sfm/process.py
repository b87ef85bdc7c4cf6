"""The process in which pycolmap lives: run as a script by a process of a given number, it answers requests until its input ends.

pycolmap's native libraries do not get along with those of Pillow and jaxlib in one process: Pillow aborts when it saves a
PNG, and an exception thrown in jaxlib crashes. So colmap.py starts this file, which imports nothing of bags_jax or JAX.

stdin: pickled (operation, arguments); stdout: a pickled (value, kind of error, one line about it) for each. A pickle says
itself where it ends. Only plain data crosses: numbers, strings, tuples, dicts and NumPy arrays.
"""

import functools
import os
import pathlib
import pickle
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

TOLERANCES = (  # of COLMAP's mapper, in px
    ("mapper", "init_max_error"),
    ("mapper", "abs_pose_max_error"),
    ("mapper", "filter_max_reproj_error"),
    ("triangulation", "complete_max_reproj_error"),
    ("triangulation", "merge_max_reproj_error"),
)
LensValues = tuple[str, int, int, tuple[float, ...]]  # the fields of images.Lens


def serve(caller: int) -> None:
    """Answers requests until the end of stdin, or of the process that started this one."""
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    # What C++ prints to stdout must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            operation, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (OPERATIONS[operation](*arguments), "", "")
        except Exception as error:  # noqa: BLE001 - pycolmap turns its checks into IndexError, ValueError, RuntimeError ...
            kind = type(error).__name__
            answer = (None, kind, " ".join(f"{kind}: {error}".split()))
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def _end_with(caller: int) -> None:
    """In the middle of hours of work, too: nobody waits for the answer when the caller was killed."""
    while os.getppid() == caller:
        time.sleep(1.0)
    os._exit(1)


@functools.cache
def load_pycolmap() -> Any:
    """Imported late: an import that fails is an answer like any other."""
    import pycolmap

    # It installs a crash handler that may never return: a crash shall end the process at once.
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTERM"):
        if hasattr(signal, name):  # Windows has no SIGBUS
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    return pycolmap


def read_model(model: str, binary: bool) -> dict[str, Any]:
    """The registered images (name, 3 x 4 cam_from_world, lens), xyz (P x 3) and rgb (P x 3, 0 .. 255) of a model.

    "unturned" are the names of images whose quaternion is 0. A model without a file of points is one without points.
    """
    points_name = "points3D.bin" if binary else "points3D.txt"
    if not pathlib.Path(model, points_name).is_file():  # which pycolmap insists on
        with tempfile.TemporaryDirectory() as folder:
            for path in pathlib.Path(model).glob(f"*{pathlib.Path(points_name).suffix}"):
                shutil.copy(path, folder)
            pathlib.Path(folder, points_name).write_bytes(bytes(8 if binary else 0))  # their number, or no line
            return read_model(folder, binary)
    reconstruction = load_pycolmap().Reconstruction()
    if binary:
        reconstruction.read_binary(model)
    else:
        reconstruction.read_text(model)
    images, unturned = [], []
    for image in reconstruction.images.values():
        if image.has_pose:
            camera = reconstruction.cameras[image.camera_id]
            lens = (camera.model.name, camera.width, camera.height, tuple(camera.params.tolist()))
            pose = image.cam_from_world()
            images.append((image.name, np.asarray(pose.matrix(), np.float64), lens))
            if not np.any(pose.rotation.quat):  # its matrix would be the identity
                unturned.append(image.name)
    # Sorted: pycolmap's order is that of a hash table, and runs must repeat.
    points = [point for _, point in sorted(reconstruction.points3D.items())]
    return {
        "images": images,
        "unturned": unturned,
        "xyz": np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
        "rgb": np.array([point.color for point in points], np.float64).reshape(-1, 3),
    }


def undistort(image: np.ndarray, lens: LensValues) -> tuple[np.ndarray, np.ndarray, float]:
    """A photograph (H x W x 3, uint8) as a pinhole camera sees it, that camera's 3 x 3 K, the share of blank pixels."""
    result, K = _undistort(image, lens)
    return result, K, _blank_fraction(lens, image.shape[1], image.shape[0])


def _undistort(image: np.ndarray, lens: LensValues) -> tuple[np.ndarray, np.ndarray]:
    pycolmap = load_pycolmap()
    model, width, height, params = lens
    camera = pycolmap.Camera(model=model, width=width, height=height, params=list(params))
    camera.rescale(image.shape[1], image.shape[0])
    bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(image))
    undistorted, pinhole = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, camera)
    return undistorted.to_array(), np.asarray(pinhole.calibration_matrix(), np.float64)


@functools.lru_cache(maxsize=256)
def _blank_fraction(lens: LensValues, width: int, height: int) -> float:
    """The share of an undistorted image that has no source pixel: what stays dark of a white photograph."""
    white, _ = _undistort(np.full((height, width, 3), 255, np.uint8), lens)
    return float((white < 250).mean())


def extract_features(database: str, folder: str, names: list[str], max_size: int) -> None:
    """SIFT features of photographs that one camera took at one size, into COLMAP's database.

    They are looked for in copies whose longer side is at most max_size px.
    """
    pycolmap = load_pycolmap()
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = max_size
    pycolmap.extract_features(
        database, folder, image_names=names, camera_mode=pycolmap.CameraMode.SINGLE, extraction_options=options
    )


def match_features(database: str, tolerance: float) -> None:
    """Compares every photograph of the database with every other; COLMAP's tolerances in px grow by a factor."""
    pycolmap = load_pycolmap()
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.max_error *= tolerance
    pycolmap.match_exhaustive(database, verification_options=options)


def map_incrementally(database: str, folder: str, models: str, tolerance: float) -> list[tuple[list[str], int, float]]:
    """Writes models to models/0, models/1 ...; of each the names with a pose, its number of points, their mean error in px."""
    pycolmap = load_pycolmap()
    pycolmap.set_random_seed(0)
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = 0
    options.min_model_size = 3
    for part, name in TOLERANCES:
        setattr(getattr(options, part), name, tolerance * getattr(getattr(options, part), name))
    found = pycolmap.incremental_mapping(database, folder, models, options)
    return [
        (
            sorted(image.name for image in model.images.values() if image.has_pose),
            len(model.points3D),
            model.compute_mean_reprojection_error(),
        )
        for _, model in sorted(found.items())
    ]


def find_damage(model: str) -> tuple[str, str] | None:
    """The first file of a binary model that does not end where its last record does, and what is wrong; None if all do.

    pycolmap reads past a truncated end, some of it wrongly, some of it forever.
    """
    walks = {
        "cameras": end_of_cameras,
        "rigs": end_of_rigs,  # rigs and frames: COLMAP >= 3.12
        "frames": end_of_frames,
        "images": end_of_images,
        "points3D": end_of_points,
    }
    for name, walk in walks.items():
        path = pathlib.Path(model, f"{name}.bin")
        if not path.is_file():
            continue
        data = path.read_bytes()
        try:
            end = walk(data)
        except (struct.error, ValueError):  # the end came before the last record did
            return str(path), "cut short, or not COLMAP's format"
        if end != len(data):
            return str(path), f"{len(data)} bytes where its records need {end}"
    return None


def end_of_cameras(data: bytes) -> int:
    """cameras.bin: count; per camera id u32, model i32, width u64, height u64, the model's parameters f64."""
    pycolmap = load_pycolmap()
    offset = 8
    for _ in range(unpack("<Q", data, 0)[0]):
        camera_id, model_id, width, height = unpack("<IiQQ", data, offset)
        if not 0 < width < 2**31 or not 0 < height < 2**31:
            raise ValueError(f"camera {camera_id} is {width} x {height} px")
        # Raises ValueError for a model that COLMAP does not have.
        params = pycolmap.Camera.create_from_model_id(camera_id, pycolmap.CameraModelId(model_id), 1.0, 1, 1).params
        offset += 24 + 8 * len(params)
    return offset


def end_of_rigs(data: bytes) -> int:
    """rigs.bin: count; per rig id u32, sensors u32; a reference (type i32, id u32); others and their poses."""
    offset = 8
    for _ in range(unpack("<Q", data, 0)[0]):
        _, num_sensors = unpack("<II", data, offset)
        offset += 8 + (8 if num_sensors else 0)
        for _ in range(num_sensors - 1):
            (has_pose,) = unpack("<8xB", data, offset)
            offset += 9 + (56 if has_pose else 0)
    return offset


def end_of_frames(data: bytes) -> int:
    """frames.bin: count; per frame id u32, rig u32, pose 7 f64, count u32 of data ids (type i32, sensor u32, id u64)."""
    offset = 8
    for _ in range(unpack("<Q", data, 0)[0]):
        (num_ids,) = unpack("<64xI", data, offset)
        offset += 68 + 16 * num_ids
    return offset


def end_of_images(data: bytes) -> int:
    """images.bin: count; per image id u32, pose 7 f64, camera u32, name ending in 0, count u64 of (x f64, y f64, id)."""
    offset = 8
    for _ in range(unpack("<Q", data, 0)[0]):
        end_of_name = data.index(b"\0", offset + 64)
        (num_points,) = unpack("<Q", data, end_of_name + 1)
        offset = end_of_name + 9 + 24 * num_points
    return offset


def end_of_points(data: bytes) -> int:
    """points3D.bin: count; per point id u64, xyz 3 f64, rgb 3 u8, error f64, count u64 of (image u32, index u32)."""
    offset = 8
    for _ in range(unpack("<Q", data, 0)[0]):
        (track_length,) = unpack("<43xQ", data, offset)
        offset += 51 + 8 * track_length
    return offset


def unpack(layout: str, data: bytes, offset: int) -> tuple[int, ...]:
    """struct.unpack_from, with struct.error for an offset of any size past the end."""
    if offset > len(data):
        raise struct.error("past the end")
    return struct.unpack_from(layout, data, offset)


OPERATIONS = {
    function.__name__: function
    for function in (extract_features, match_features, map_incrementally, find_damage, read_model, undistort)
}

if __name__ == "__main__":
    serve(caller=int(sys.argv[1]))
