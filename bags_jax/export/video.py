"""Frames to an .mp4 file.

VP9 in MP4 through OpenCV, whose wheels carry an LGPL build of ffmpeg with libvpx. Chrome, Edge, Firefox, VLC and mpv
play it, Safari where the system decodes VP9. The usual writers of H.264 (imageio-ffmpeg, PyAV) carry x264 (GPL),
and the MPEG-4 that OpenCV writes otherwise (mp4v) plays in few browsers.
"""

import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from bags_jax.atomic import whole_file
from bags_jax.errors import UserError


def write_video(path: str | os.PathLike, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float = 30.0) -> None:
    """Writes an MP4 video (VP9, 4:2:0). The file appears whole or not at all.

    An odd side is made even by repeating its last row or column: the chroma of 4:2:0 has half the resolution.

    Args:
      path: the file, ending in .mp4; its folder is made where it is missing.
      frames: sRGB, all of one size; an array of them, or an iterator, of which only one is in memory at a time.
      fps: frames per second.
    Raises:
      UserError: OpenCV is missing or has no VP9, no frames, another dtype or shape, fps not positive, another ending,
        or a path that cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"the video is to be {path.name!r}; expected a name that ends in .mp4: rename it")
    if not 0 < fps <= 240:
        raise UserError(f"fps is {fps}; expected above 0 and at most 240, such as 30")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UserError("no frames came: expected at least one frame of at least one pixel")
    with whole_file(path) as unfinished:
        unfinished.touch()  # OpenCV does not say why it cannot write; this does
        _encode(unfinished, _even(itertools.chain([first], frames)), fps)


def _even(frames: Iterable[np.ndarray]) -> Iterator[UInt8[np.ndarray, "_H _W 3"]]:
    """The frames with even sides, each checked."""
    shape = None
    for frame in frames:
        shape = shape or np.shape(frame)
        is_picture = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.size > 0
        if not is_picture or frame.shape != (*shape[:2], 3):
            found = f"{getattr(frame, 'dtype', type(frame).__name__)} {np.shape(frame)}"
            raise UserError(f"a frame is {found}; expected uint8 (H, W, 3), not empty, the size of the first: round it")
        yield np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")


def _encode(path: pathlib.Path, frames: Iterator[np.ndarray], fps: float) -> None:
    try:
        import cv2  # here, not above: slow to import, and nothing but videos needs it
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
    # write() and release() say nothing of a full disk: count what can be read back.
    reader = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    written = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    if written != count:
        raise UserError(f"{written} of {count} frames could be written to {path.parent}: is the disk full?")
