"""Writes .mp4 videos.

Uses VP9 through OpenCV, whose wheels contain an LGPL build of ffmpeg with libvpx. Chrome, Edge, Firefox, VLC and mpv
play VP9 in MP4; Safari does if the system decodes VP9. The usual H.264 writers (imageio-ffmpeg, PyAV) contain x264
(GPL). OpenCV's default codec for MP4 (MPEG-4, mp4v) plays in few browsers.
"""

import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from bags_jax.atomic import replace_atomic
from bags_jax.errors import UserError


def write_video(path: str | os.PathLike, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float = 30.0) -> None:
    """Writes an MP4 video (VP9, 4:2:0) and creates its folder if needed. The write is atomic.

    Repeats the last row or column of an odd side: the chroma of 4:2:0 has half the resolution.

    Args:
      path: the file; must end in .mp4.
      frames: sRGB, all of one size: an array, or an iterator, which keeps only one frame in memory at a time.
      fps: frames per second, above 0 and at most 240.
    Raises:
      UserError: OpenCV is missing or has no VP9; no frames; wrong dtype or shape; fps out of range; or the path does
        not end in .mp4 or cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"the video's file name is {path.name!r}; expected a name that ends in .mp4")
    if not 0 < fps <= 240:
        raise UserError(f"fps is {fps}; expected above 0 and at most 240, such as 30")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UserError("the video has no frames; expected at least one frame of at least one pixel")
    with replace_atomic(path) as unfinished:
        unfinished.touch()  # raises an OSError with the reason if the path cannot be written; OpenCV gives no reason
        _encode(unfinished, _pad_to_even(itertools.chain([first], frames)), fps)


def _pad_to_even(frames: Iterable[np.ndarray]) -> Iterator[UInt8[np.ndarray, "_H _W 3"]]:
    """Checks each frame and pads odd sides to even ones."""
    shape = None
    for frame in frames:
        shape = shape or np.shape(frame)
        is_picture = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.size > 0
        if not is_picture or frame.shape != (*shape[:2], 3):
            found = f"{getattr(frame, 'dtype', type(frame).__name__)} {np.shape(frame)}"
            raise UserError(
                f"a frame is {found}; expected uint8 (H, W, 3), not empty, of the first frame's size: convert it"
            )
        yield np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")


def _encode(path: pathlib.Path, frames: Iterator[np.ndarray], fps: float) -> None:
    try:
        import cv2
    except ImportError as error:
        raise UserError("videos need OpenCV: pip install opencv-python-headless") from error
    first = next(frames)
    size = (first.shape[1], first.shape[0])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"vp09"), float(fps), size)
    if not writer.isOpened():
        raise UserError(
            f"OpenCV {cv2.__version__} cannot encode VP9 here: pip install opencv-python-headless (x86-64 or arm64)"
        )
    count = 0
    for frame in itertools.chain([first], frames):
        writer.write(np.ascontiguousarray(frame[..., ::-1]))  # BGR
        count += 1
    writer.release()
    # write() and release() do not report a full disk: count the frames in the file.
    reader = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    written = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    if written != count:
        raise UserError(f"only {written} of {count} frames were written to {path.parent}: free space on the disk")
