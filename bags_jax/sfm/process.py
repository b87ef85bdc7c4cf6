"""The process of pycolmap. Runs as a script: `python process.py PID`, where PID is the process that started it.

pycolmap's native libraries clash with those of Pillow and jaxlib in one process: Pillow aborts when it saves a PNG, and
an exception thrown in jaxlib crashes. So `client.py` starts this file, which imports nothing of bags_jax or JAX.

stdin: pickled requests (operation, arguments). stdout: for each a pickled (value, type of the error, the error in one
line), and before it any number of (count, "progress", ""). Only plain data is sent: numbers, strings, tuples, lists, dicts and NumPy arrays.
"""

import contextlib
import functools
import itertools
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
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

TOLERANCES = (  # options of COLMAP's mapper, in px
    ("mapper", "init_max_error"),
    ("mapper", "abs_pose_max_error"),
    ("mapper", "filter_max_reproj_error"),
    ("triangulation", "complete_max_reproj_error"),
    ("triangulation", "merge_max_reproj_error"),
)
LensValues = tuple[str, int, int, tuple[float, ...]]  # the fields of data.lens.Lens


def serve(caller: int) -> None:
    """Answers requests until stdin ends or the calling process exits."""
    threading.Thread(target=_exit_with, args=(caller,), daemon=True).start()
    # C++ prints to stdout: redirect file descriptor 1, so that the answers stay intact.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        arguments: tuple[Any, ...]
        try:
            operation, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if operation in REPORTING:
            arguments = (*arguments, functools.partial(_send_progress, answers))
        try:
            answer = (OPERATIONS[operation](*arguments), "", "")
        except Exception as error:  # noqa: BLE001 - pycolmap's checks raise IndexError, ValueError, RuntimeError ...
            kind = type(error).__name__
            answer = (None, kind, " ".join(f"{kind}: {error}".split()))
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def _send_progress(answers: IO[bytes], count: int) -> None:
    pickle.dump((count, "progress", ""), answers, protocol=5)
    answers.flush()


def _exit_with(caller: int) -> None:
    """Exits when the calling process has exited, even in the middle of hours of work."""
    while os.getppid() == caller:
        time.sleep(1.0)
    os._exit(1)


@functools.cache
def load_pycolmap() -> Any:
    """Imports pycolmap. Late, so that a failed import is reported as the answer to a request."""
    import pycolmap

    # pycolmap's crash handler may never return. With the default handlers a crash ends the process at once.
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTERM"):
        if hasattr(signal, name):  # Windows has no SIGBUS
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    return pycolmap


def read_model(model: str, binary: bool) -> dict[str, Any]:
    """Reads a COLMAP model, which may lack the file of points.

    Returns:
      "images": (name, cam_from_world [3, 4], lens) of each registered image. "zero_rotations": names of the images with
      the quaternion 0. "xyz": points [P, 3], world frame. "rgb": their colours [P, 3], 0 to 255.
    """
    points_name = "points3D.bin" if binary else "points3D.txt"
    if not pathlib.Path(model, points_name).is_file():  # pycolmap needs the file
        with tempfile.TemporaryDirectory() as folder:
            for path in pathlib.Path(model).glob(f"*{pathlib.Path(points_name).suffix}"):
                shutil.copy(path, folder)
            no_points = bytes(8 if binary else 0)  # a count of 0, or no line
            pathlib.Path(folder, points_name).write_bytes(no_points)
            return read_model(folder, binary)
    reconstruction = load_pycolmap().Reconstruction()
    if binary:
        reconstruction.read_binary(model)
    else:
        reconstruction.read_text(model)
    images, zero_rotations = [], []
    for image in reconstruction.images.values():
        if image.has_pose:
            camera = reconstruction.cameras[image.camera_id]
            lens = (camera.model.name, camera.width, camera.height, tuple(camera.params.tolist()))
            pose = image.cam_from_world()
            images.append((image.name, np.asarray(pose.matrix(), np.float64), lens))
            if not np.any(pose.rotation.quat):  # pycolmap's matrix is the identity
                zero_rotations.append(image.name)
    # Sorted, because runs must repeat and pycolmap's order is that of a hash table.
    points = [point for _, point in sorted(reconstruction.points3D.items())]
    return {
        "images": images,
        "zero_rotations": zero_rotations,
        "xyz": np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
        "rgb": np.array([point.color for point in points], np.float64).reshape(-1, 3),
    }


def undistort(image: np.ndarray, lens: LensValues) -> tuple[np.ndarray, np.ndarray, float]:
    """Undistorts a photograph [H, W, 3], uint8. Returns the image, its K [3, 3] in px, the share of blank pixels."""
    result, K = _undistort(image, lens)
    return result, K, _measure_blank_share(lens, image.shape[1], image.shape[0])


def _undistort(image: np.ndarray, lens: LensValues) -> tuple[np.ndarray, np.ndarray]:
    pycolmap = load_pycolmap()
    model, width, height, params = lens
    models = [name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"]
    if model not in models:
        raise ValueError(f"expected a model of COLMAP: {', '.join(models)}")
    camera = pycolmap.Camera(model=model, width=width, height=height, params=list(params))
    if not camera.verify_params():
        raise ValueError(f"expected the parameters {camera.params_info}")
    camera.rescale(image.shape[1], image.shape[0])
    bitmap = pycolmap.Bitmap.from_array(np.ascontiguousarray(image))
    undistorted, pinhole = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, camera)
    return undistorted.to_array(), np.asarray(pinhole.calibration_matrix(), np.float64)


@functools.lru_cache(maxsize=256)
def _measure_blank_share(lens: LensValues, width: int, height: int) -> float:
    """Returns the share of dark pixels in an undistorted white photograph: they have no source pixel."""
    white, _ = _undistort(np.full((height, width, 3), 255, np.uint8), lens)
    return float((white < 250).mean())


def extract_features(database: str, folder: str, masks: str, names: list[str], max_size: int, camera_id: int) -> int:
    """Writes the SIFT features of photographs by one camera, of one size, to COLMAP's database. Returns the camera's id.

    COLMAP extracts the features from copies whose longer side is at most max_size px.

    Args:
      masks: folder of NAME.png for photograph NAME: no feature where a mask is black; "": there are no masks.
      camera_id: of a camera in the database; -1: a new camera, whose focal length is that of the EXIF, if it has one.
    """
    pycolmap = load_pycolmap()
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = max_size
    reader = pycolmap.ImageReaderOptions()
    reader.existing_camera_id = camera_id
    reader.mask_path = masks
    mode = pycolmap.CameraMode.SINGLE
    pycolmap.extract_features(
        database, folder, image_names=names, camera_mode=mode, reader_options=reader, extraction_options=options
    )
    with open_database(database) as opened:
        found = [image.camera_id for image in opened.read_all_images() if image.name in names]
    return max([camera_id, *found])  # a photograph that cannot be decoded is not in the database


@contextlib.contextmanager
def open_database(path: str) -> Iterator[Any]:
    """Opens COLMAP's database for a block."""
    database = load_pycolmap().Database.open(path)
    try:
        yield database
    finally:
        database.close()


def read_photographs(database: str) -> dict[str, tuple[int, bool, tuple[float, ...]]]:
    """Returns by name: number of features, whether the focal length is known, GPS position (degrees, metres) or ()."""
    with open_database(database) as opened:
        cameras = {camera.camera_id: camera for camera in opened.read_all_cameras()}
        places = {
            prior.corr_data_id.id: tuple(float(x) for x in prior.position)
            for prior in opened.read_all_pose_priors()
            if np.isfinite(prior.position).all()
        }
        return {
            image.name: (
                opened.num_keypoints_for_image(image.image_id),
                cameras[image.camera_id].has_prior_focal_length,
                places.get(image.image_id, ()),
            )
            for image in opened.read_all_images()
        }


def read_features(database: str, names: list[str], limit: int) -> list[np.ndarray]:
    """Returns the descriptors [n, 128], uint8, of the `limit` largest features of each photograph."""
    found = []
    with open_database(database) as opened:
        for name in names:
            image_id = opened.read_image_with_name(name).image_id
            keypoints = np.asarray(opened.read_keypoints(image_id)).reshape(-1, 6)
            sizes = np.linalg.norm(keypoints[:, 2:4], axis=1)
            largest = np.argsort(-sizes, kind="stable")[:limit]
            found.append(np.asarray(opened.read_descriptors(image_id).data).reshape(-1, 128)[largest])
    return found


def match_pairs(database: str, pairs: list[tuple[str, str]], tolerance: float) -> None:
    """Matches pairs of photographs in the database. COLMAP's tolerances in px are multiplied by `tolerance`."""
    pycolmap = load_pycolmap()
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.max_error *= tolerance
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = f"{database}.pairs"
    with name_by_number(database) as numbers:
        lines = [f"{numbers[first]} {numbers[second]}\n" for first, second in pairs]
        pathlib.Path(pairing.match_list_path).write_text("".join(lines))
        pycolmap.match_image_pairs(database, pairing_options=pairing, verification_options=options)


@contextlib.contextmanager
def name_by_number(database: str) -> Iterator[dict[str, str]]:
    """Replaces the names in the database by numbers for a block: COLMAP's lists of pairs take no name with a space."""
    with open_database(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
    numbers = {image_id: str(image_id) for image_id in names}
    rename(database, numbers)
    try:
        yield {names[image_id]: number for image_id, number in numbers.items()}
    finally:
        rename(database, names)


def rename(database: str, names: dict[int, str]) -> None:
    """Renames photographs, by their ids."""
    with open_database(database) as opened, load_pycolmap().DatabaseTransaction(opened):
        for image in opened.read_all_images():
            image.name = names[image.image_id]
            opened.update_image(image)


def read_matches(database: str) -> list[tuple[str, str, int, str]]:
    """Returns (name, name, number of inliers, kind of the two-view geometry) of each pair with a verified geometry."""
    pycolmap = load_pycolmap()
    with open_database(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        found = []
        for pair_id, geometry in zip(*opened.read_two_view_geometries(), strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            num = len(geometry.inlier_matches)
            if num:
                kind = pycolmap.TwoViewGeometryConfiguration(geometry.config).name
                found.append((names[first], names[second], num, kind))
        return found


def map_incrementally(
    database: str, folder: str, models: str, tolerance: float, report: Callable[[int], None]
) -> list[tuple[list[str], int, float]]:
    """Writes models to models/0, models/1 ... Returns of each (names with a pose, number of points, mean error px).

    report: receives the number of photographs of the model that grows.
    """
    pycolmap = load_pycolmap()
    pycolmap.set_random_seed(0)
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = 0
    options.min_model_size = 3
    for part, name in TOLERANCES:
        setattr(getattr(options, part), name, tolerance * getattr(getattr(options, part), name))
    count = itertools.count()

    def start_model() -> None:
        nonlocal count
        count = itertools.count(3)
        report(2)

    reconstructions = pycolmap.incremental_mapping(
        database,
        folder,
        models,
        options,
        initial_image_pair_callback=start_model,
        next_image_callback=lambda: report(next(count)),
    )
    return [
        (
            sorted(image.name for image in model.images.values() if image.has_pose),
            len(model.points3D),
            model.compute_mean_reprojection_error(),
        )
        for _, model in sorted(reconstructions.items())
    ]


def find_damage(model: str) -> tuple[str, str] | None:
    """Returns the first file of a binary model that does not end with its last record, and the damage; None if all do.

    pycolmap reads past a truncated end: it returns wrong values or never returns.
    """
    finders = {
        "cameras": find_end_of_cameras,
        "rigs": find_end_of_rigs,  # rigs and frames: COLMAP >= 3.12
        # per frame id u32, rig u32, pose 7 f64, count u32 of ids (type i32, sensor u32, id u64)
        "frames": lambda data: find_end_of_lists(data, "<64xI", item_size=16),
        "images": find_end_of_images,
        # per point id u64, xyz 3 f64, rgb 3 u8, error f64, count u64 of (image u32, index u32)
        "points3D": lambda data: find_end_of_lists(data, "<43xQ", item_size=8),
    }
    for name, find_end in finders.items():
        path = pathlib.Path(model, f"{name}.bin")
        if not path.is_file():
            continue
        data = path.read_bytes()
        try:
            end = find_end(data)
        except (struct.error, ValueError):  # the file ends before its last record
            return str(path), "cut short, or not COLMAP's format"
        if end != len(data):
            return str(path), f"{len(data)} bytes where its records need {end}"
    return None


def find_end_of_cameras(data: bytes) -> int:
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


def find_end_of_rigs(data: bytes) -> int:
    """rigs.bin: count; per rig id u32, sensors u32; the first sensor (type i32, id u32); the others with poses."""
    offset = 8
    for _ in range(unpack("<Q", data, 0)[0]):
        _, num_sensors = unpack("<II", data, offset)
        offset += 8 + (8 if num_sensors else 0)
        for _ in range(num_sensors - 1):
            (has_pose,) = unpack("<8xB", data, offset)
            offset += 9 + (56 if has_pose else 0)
    return offset


def find_end_of_lists(data: bytes, layout: str, *, item_size: int) -> int:
    """Count; per record the fields of `layout`, of which the last is the number of items, then the items."""
    offset, size = 8, struct.calcsize(layout)
    for _ in range(unpack("<Q", data, 0)[0]):
        (num_items,) = unpack(layout, data, offset)
        offset += size + item_size * num_items
    return offset


def find_end_of_images(data: bytes) -> int:
    """images.bin: count; per image id u32, pose 7 f64, camera u32, name, 0, count u64 of (x f64, y f64, id u64)."""
    offset = 8
    for _ in range(unpack("<Q", data, 0)[0]):
        end_of_name = data.index(b"\0", offset + 64)
        (num_points,) = unpack("<Q", data, end_of_name + 1)
        offset = end_of_name + 9 + 24 * num_points
    return offset


def unpack(layout: str, data: bytes, offset: int) -> tuple[int, ...]:
    """Calls struct.unpack_from; raises struct.error for an offset of any size past the end."""
    if offset > len(data):
        raise struct.error("past the end")
    return struct.unpack_from(layout, data, offset)


OPERATIONS = {
    function.__name__: function
    for function in (
        extract_features,
        read_photographs,
        read_features,
        match_pairs,
        read_matches,
        map_incrementally,
        find_damage,
        read_model,
        undistort,
    )
}
REPORTING = ("map_incrementally",)  # operations that get a function for their progress as the last argument

if __name__ == "__main__":
    serve(caller=int(sys.argv[1]))
