"""Frames to an .mp4 file.

VP9 in MP4 through OpenCV, whose wheels carry an LGPL build of ffmpeg with libvpx. Chrome, Edge, Firefox, VLC and mpv
play it, Safari where the system decodes VP9. The usual writers of H.264 (imageio-ffmpeg, PyAV) carry x264 (GPL),
and the MPEG-4 that OpenCV writes otherwise (mp4v) plays in few browsers.
"""

import os
import pathlib

import numpy as np
from jaxtyping import UInt8

from bags_jax.atomic import whole_file
from bags_jax.errors import UserError


def write_video(path: str | os.PathLike, frames: UInt8[np.ndarray, "F H W 3"], *, fps: float = 30.0) -> None:
    """Writes an MP4 video (VP9, 4:2:0). The file appears whole or not at all.

    An odd side is made even by repeating its last row or column: the chroma of 4:2:0 has half the resolution.

    Args:
      path: the file, ending in .mp4; its folder is made where it is missing.
      frames: sRGB.
      fps: frames per second.
    Raises:
      UserError: OpenCV is missing or has no VP9, no frames, another dtype or shape, fps not positive, another ending,
        or a path that cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".mp4":
        raise UserError(f"the video is to be {path.name!r}; expected a name that ends in .mp4: rename it")
    if not (isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3):
        found = f"{getattr(frames, 'dtype', type(frames).__name__)} {np.shape(frames)}"
        raise UserError(f"the frames are {found}; expected uint8 (F, H, W, 3): round and stack them")
    if frames.size == 0:
        raise UserError(f"the frames have shape {frames.shape}: expected at least one frame of at least one pixel")
    if not 0 < fps <= 240:
        raise UserError(f"fps is {fps}; expected above 0 and at most 240, such as 30")
    with whole_file(path) as unfinished:
        unfinished.touch()  # OpenCV does not say why it cannot write; this does
        _encode(unfinished, frames, fps)


def _encode(path: pathlib.Path, frames: np.ndarray, fps: float) -> None:
    try:
        import cv2  # here, not above: slow to import, and nothing but videos needs it
    except ImportError as error:
        raise UserError("videos need OpenCV: pip install opencv-python-headless") from error
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    size = (even.shape[2], even.shape[1])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"vp09"), float(fps), size)
    if not writer.isOpened():
        raise UserError(
            f"OpenCV {cv2.__version__} cannot encode VP9 here: pip install opencv-python-headless (x86-64 or arm64)"
        )
    for frame in even:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))  # BGR
    writer.release()
    # write() and release() say nothing of a full disk: count what can be read back.
    reader = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    written = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    if written != len(frames):
        raise UserError(f"{written} of {len(frames)} frames could be written to {path.parent}: is the disk full?")
