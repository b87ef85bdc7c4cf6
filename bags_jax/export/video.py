"""Writes .mp4 videos: H.264 by the program ffmpeg where it is installed, else VP9 by OpenCV.

Everything plays H.264. ffmpeg is called as a program in PATH and not shipped: the wheels with H.264 writers
(imageio-ffmpeg, PyAV) contain x264 (GPL). OpenCV's wheels contain an LGPL build of ffmpeg with libvpx: Chrome, Edge,
Firefox, VLC and mpv play VP9 in MP4; Safari does if the system decodes VP9. OpenCV's default codec for MP4 (MPEG-4,
mp4v) plays in few browsers.
"""

import functools
import itertools
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt8

from bags_jax.atomic import replace_atomic
from bags_jax.errors import UserError

# Encoders of H.264 in builds of ffmpeg, best first, with their options.
_H264 = {
    "libx264": ("-crf", "18", "-preset", "medium"),
    "libopenh264": ("-b:v", "12M"),
    "h264_videotoolbox": ("-b:v", "12M"),
}
# Browsers assume BT.709; without the filter ffmpeg converts by BT.601 and colours shift.
_COLORS = ("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p", "-colorspace", "bt709")
_COLORS += ("-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")


def write_video(path: str | os.PathLike, frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float = 30.0) -> str:
    """Writes an MP4 video (4:2:0) and creates its folder if needed. The write is atomic.

    Repeats the last row or column of an odd side: the chroma of 4:2:0 has half the resolution.

    Args:
      path: the file; must end in .mp4.
      frames: sRGB, all of one size: an array, or an iterator, which keeps only one frame in memory at a time.
      fps: frames per second, above 0 and at most 240.
    Returns:
      Codec and encoder, in words.
    Raises:
      UserError: neither encoder is there; no frames; wrong dtype or shape; fps out of range; or the path does not end
        in .mp4 or cannot be written.
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
        padded = _pad_to_even(itertools.chain([first], frames))
        program = shutil.which("ffmpeg")
        encoder = _find_h264(program) if program else None
        if program and encoder:
            _encode_h264(unfinished, padded, fps, program=program, encoder=encoder)
            return f"H.264 by ffmpeg ({encoder})"
        _encode_vp9(unfinished, padded, fps)
        return "VP9 by OpenCV, because no ffmpeg with H.264 is in PATH"


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


@functools.cache
def _find_h264(program: str) -> str | None:
    """Returns the best H.264 encoder of an ffmpeg; None: it has none, or does not run."""
    try:
        command = [program, "-hide_banner", "-encoders"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return next((name for name in _H264 if f" {name} " in done.stdout), None)


def _encode_h264(path: pathlib.Path, frames: Iterator[np.ndarray], fps: float, *, program: str, encoder: str) -> None:
    """Pipes raw frames to ffmpeg. faststart: the index goes to the front, so that a browser plays at once."""
    first = next(frames)
    command = [program, "-y", "-hide_banner", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{first.shape[1]}x{first.shape[0]}", "-r", str(fps), "-i", "-", "-an", "-c:v", encoder]
    command += [*_H264[encoder], *_COLORS, "-movflags", "+faststart", str(path)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        assert process.stdin
        try:
            for frame in itertools.chain([first], frames):
                process.stdin.write(np.ascontiguousarray(frame).data)
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg stopped: its message follows
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
        if process.returncode:
            said.seek(0)
            lines = said.read().decode("utf8", "replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")
            raise UserError(f"ffmpeg wrote no film ({last[:200]}): free space on the disk, or take ffmpeg out of PATH")


def _encode_vp9(path: pathlib.Path, frames: Iterator[np.ndarray], fps: float) -> None:
    try:
        import cv2
    except ImportError as error:
        raise UserError("videos need OpenCV or ffmpeg: pip install opencv-python-headless") from error
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
