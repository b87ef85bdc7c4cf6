"""Renders a trained scene: PNG files and an mp4 film in the folder of the run.

  bags-jax render --workdir=runs/motion --path=spiral

Paths of the camera:
  test, train   the held-out cameras; the training cameras, sorted by name
  spiral        a loop around the training cameras, or around the object that they surround
  orbit         around the subject, about the up direction, as far as photographs go
  interpolate   smoothly through the training cameras
  FILE.json     a camera path that nerfstudio's viewer has written, in the frame of the capture
Pictures: sharp; depth (pale is near); compare (the photograph, wiped over its sharp render).
"""

import collections
import pathlib
from collections.abc import Iterator

import numpy as np
import tqdm
from absl import flags

from bags_jax.camera_path import CameraPath
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.errors import UserError
from bags_jax.export.film import MODES, check_mode, depth_range, draw_depth, photograph, wipe, wipe_frames
from bags_jax.export.video import write_video
from bags_jax.report.pictures import to_uint8, write_png
from bags_jax.run import Run, find_path, open_run, render_cameras

PATHS = ("test", "train", "spiral", "orbit", "interpolate")
DEFAULT_FPS = 30.0

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_PATH = flags.DEFINE_string("path", "spiral", f"Path of the camera: {', '.join(PATHS)}, or FILE.json.")
_MODE = flags.DEFINE_enum("mode", "sharp", MODES, "What the pictures show: sharp, depth or compare.")
_FRAMES = flags.DEFINE_integer("frames", 120, "Number of frames of spiral, orbit and interpolate.", lower_bound=2)
_FPS = flags.DEFINE_float("fps", None, "Frames per second of the film; by default the file's or 30.", 0.1, 240)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the last.")
_DATA = flags.DEFINE_string("data_root", None, "Folder of the capture, if it has moved since training.")
_CACHE = flags.DEFINE_string("compilation_cache", "auto", "Folder of compiled programs; empty: none.")


def draw(run: Run, cameras: CameraPath, folder: pathlib.Path, *, fps: float) -> Iterator[np.ndarray]:
    """Writes one picture for each camera and yields the frames of the film: the pictures, or a wipe for each view."""
    mode = _MODE.value
    limits = depth_range(run, cameras) if mode == "depth" else (1.0, 2.0)
    renders = tqdm.tqdm(render_cameras(run, cameras), total=len(cameras.viewmats), unit="frame", dynamic_ncols=True)
    for number, rendered in enumerate(renders):
        sharp = to_uint8(rendered.image)
        frames = [draw_depth(rendered, limits) if mode == "depth" else sharp]
        picture = frames[0]
        if mode == "compare" and cameras.ids is not None:
            photo = photograph(run, int(cameras.ids[number]))
            picture, frames = wipe(photo, sharp, 0.5), wipe_frames(photo, sharp, fps=fps)
        write_png(folder / f"{number:04d}.png", picture)
        yield from frames


def choose_name(path: str, mode: str) -> str:
    """The name of the folder and the film.

    Raises:
      UserError: there is no such path.
    """
    if path not in PATHS and not path.endswith(".json"):
        raise UserError(f"--path={path} came, expected {', '.join(PATHS)}, or a camera path that ends in .json")
    name = pathlib.Path(path).stem if path.endswith(".json") else path
    return name if mode == "sharp" else f"{name}_{mode}"


def main() -> None:
    """Renders the run of the flags."""
    name = choose_name(_PATH.value, _MODE.value)
    use_compilation_cache(_CACHE.value)
    run = open_run(_WORKDIR.value, step=_STEP.value, data_root=_DATA.value)
    cameras = find_path(run, _PATH.value, num_frames=_FRAMES.value)
    check_mode(_MODE.value, cameras)
    folder = pathlib.Path(run.workdir) / "renders" / name
    for old in folder.glob("[0-9][0-9][0-9][0-9].png"):  # an earlier film may have been longer
        old.unlink()
    film, fps = folder.with_suffix(".mp4"), _FPS.value or cameras.fps or DEFAULT_FPS
    frames = draw(run, cameras, folder, fps=fps)
    if len(np.unique(cameras.sizes, axis=0)) > 1:
        collections.deque(frames, maxlen=0)
        print(f"{len(cameras.viewmats)} pictures in {folder}; no film, because their sizes differ")
    else:
        codec = write_video(film, frames, fps=fps)
        print(f"{len(cameras.viewmats)} pictures in {folder}, film: {film} ({codec})")


def run() -> None:
    """The command `bags-jax render`."""
    launch(main)
