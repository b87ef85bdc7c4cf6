"""Video files: how sharp each frame is, how far the picture has moved, and frames written as photographs (OpenCV)."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from bags_jax.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mts", ".3gp", ".mpg", ".mpeg")
MAX_WATCHED = 3000  # frames; of a longer video, every second, third ... is watched
JPEG_QUALITY = 95
_SHARPNESS_WIDTH, _MOTION_WIDTH = 640, 320  # px, of the gray copies that are measured
_NUM_CORNERS, _MIN_CORNERS = 250, 20
_STEP = 0.02  # share of the longer side after which new corners are tracked: a trembling hand makes no path
_LOST_STEP = 0.05  # path, share of the longer side, where the tracks break off
Report = Callable[[int], Any]  # receives the number of frames done since its last call


@dataclasses.dataclass(frozen=True)
class Footage:
    """A video, watched once. F frames were watched."""

    file: pathlib.Path
    numbers: Int[np.ndarray, "F"]  # of the frames in the file, from 0
    sharpness: Float[np.ndarray, "F"]  # mean squared gradient of a gray copy, (grey levels / px)^2
    path: Float[np.ndarray, "F"]  # how far the picture has moved up to each frame, share of its longer side
    num_frames: int  # frames that could be decoded
    num_promised: int  # frames by the file's header; 0: not said
    seconds: float
    width: int  # px, upright
    height: int  # px, upright


def is_video(path: pathlib.Path) -> bool:
    """True for the name of a video file."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_header(file: pathlib.Path) -> tuple[int, float]:
    """Returns the number of frames that the header of a video promises (0: unknown), and the frames per second.

    Raises:
      UserError: OpenCV is missing or cannot decode the file.
    """
    cv2 = load_cv2()
    capture = _open(file)
    count, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    is_decoded = capture.grab()
    capture.release()
    if not is_decoded:
        raise _make_video_error(file)
    return max(int(count), 0), fps if 1 <= fps <= 1000 else 30.0


def watch(file: pathlib.Path, *, report: Report = lambda num: None) -> Footage:
    """Decodes a video once and measures its frames.

    Raises:
      UserError: no frame can be decoded.
    """
    num_promised, fps = read_header(file)
    every = max(1, -(-num_promised // MAX_WATCHED))
    numbers, sharpness, moved, size, count = [], [], [], (0, 0), 0
    path = _Path()
    for number, frame in _decode(file, lambda number: number % every == 0):
        report(number + 1 - count)
        count = number + 1
        if frame is None:
            continue
        gray = _to_gray(frame)
        numbers.append(number)
        sharpness.append(_measure_sharpness(_narrow(gray, _SHARPNESS_WIDTH)))
        moved.append(path.extend(_narrow(gray, _MOTION_WIDTH)))
        size = frame.shape[1], frame.shape[0]
    if not numbers:
        raise _make_video_error(file)
    values = np.array(numbers), np.array(sharpness), np.array(moved)
    return Footage(file, *values, count, num_promised, count / fps, *size)


def write_frames(
    footage: Footage, numbers: Int[np.ndarray, "_n"], folder: pathlib.Path, *, report: Report = lambda num: None
) -> list[pathlib.Path]:
    """Writes frames of a video as upright JPEG files, named by their numbers in the video. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted, files = set(numbers.tolist()), []
    for number, frame in _decode(footage.file, wanted.__contains__):
        if frame is not None:
            files.append(folder / f"frame_{number:06d}.jpg")
            picture = Image.fromarray(np.ascontiguousarray(frame[..., ::-1]))
            picture.save(files[-1], quality=JPEG_QUALITY, subsampling=0)
            report(1)
        if len(files) == len(wanted):
            break
    return files


def _decode(
    file: pathlib.Path, is_wanted: Callable[[int], bool]
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"] | None]]:
    """Yields each frame's number and its pixels (BGR, upright), or None in their place if it is not wanted."""
    capture = _open(file)
    number = 0
    try:
        while capture.grab():
            frame = None
            if is_wanted(number):
                is_decoded, frame = capture.retrieve()
                if not is_decoded:
                    return
            yield number, frame
            number += 1
    finally:
        capture.release()


def load_cv2() -> Any:
    """Imports OpenCV, silent: FFmpeg and OpenCV print lines of their own, and the programs print one line.

    Raises:
      UserError: OpenCV is missing.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, when OpenCV first uses FFmpeg
    try:
        import cv2
    except ImportError as error:
        raise UserError("videos need OpenCV: pip install opencv-python-headless") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def _open(file: pathlib.Path) -> Any:
    cv2 = load_cv2()
    if not os.access(file, os.R_OK):
        raise UserError(f"{file} cannot be read: expected a video file that you may read; change its permissions")
    capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise _make_video_error(file)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # turns the frames upright by the file's rotation
    return capture


def _make_video_error(file: pathlib.Path) -> UserError:
    return UserError(
        f"{file} cannot be decoded as a video: expected a whole file with a codec that OpenCV's FFmpeg knows, such as "
        "H.264 or HEVC in .mp4 or .mov; copy the file again, or convert it (ffmpeg -i FILE converted.mp4)"
    )


def _to_gray(frame: np.ndarray) -> np.ndarray:
    cv2 = load_cv2()
    return cv2.cvtColor(_narrow(frame, _SHARPNESS_WIDTH), cv2.COLOR_BGR2GRAY)


def _narrow(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrinks a picture so that its longer side has at most `longest` px."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    cv2 = load_cv2()
    return cv2.resize(
        image, (max(round(width * scale), 1), max(round(height * scale), 1)), interpolation=cv2.INTER_AREA
    )


def _measure_sharpness(gray: np.ndarray) -> float:
    smooth = gray.astype(np.float32)
    x, y = smooth[:-1, 1:] - smooth[:-1, :-1], smooth[1:, :-1] - smooth[:-1, :-1]
    return float(np.mean(x * x + y * y))


class _Path:
    """How far the picture has moved: corners are tracked (Lucas and Kanade 1981) until they are _STEP away."""

    def __init__(self):
        self._length, self._reach = 0.0, 0.0
        self._before, self._start, self._points = None, None, None

    def extend(self, gray: np.ndarray) -> float:
        """Takes the next frame. Returns the length of the path up to it, share of the longer side; it never shrinks."""
        if self._before is None or self._start is None:
            self._restart(gray)
            return self._length
        moved = self._track(gray)
        if moved is None:
            self._length += max(_LOST_STEP, self._reach)
            self._restart(gray)
            return self._length
        self._reach = max(self._reach, moved)
        if moved >= _STEP:
            self._length += self._reach
            self._restart(gray)
            return self._length
        self._before = gray
        return self._length + self._reach

    def _track(self, gray: np.ndarray) -> float | None:
        """Returns the median distance of the corners from their start, share of the longer side; None: too few are left."""
        cv2 = load_cv2()
        assert self._start is not None
        points, found, _ = cv2.calcOpticalFlowPyrLK(
            self._before, gray, self._points, None, winSize=(21, 21), maxLevel=3
        )
        is_found = found.ravel() > 0
        if is_found.sum() < max(_MIN_CORNERS, 0.4 * len(is_found)):
            return None
        self._points, self._start = points[is_found], self._start[is_found]
        return float(np.median(np.linalg.norm((self._points - self._start).reshape(-1, 2), axis=1))) / max(gray.shape)

    def _restart(self, gray: np.ndarray) -> None:
        cv2 = load_cv2()
        corners = cv2.goodFeaturesToTrack(gray, _NUM_CORNERS, 0.01, 5)
        is_enough = corners is not None and len(corners) >= _MIN_CORNERS
        self._before, self._reach = gray, 0.0
        self._points = self._start = corners if is_enough else None
