"""Renders a trained scene: PNG files and an mp4 film in the folder of the run.

  bags-jax render --workdir=runs/motion --path=spiral

Paths of the camera: test (the held-out cameras), train (the training cameras, sorted by name),
spiral (a loop around the training cameras, or around the object that they surround).
"""

import pathlib

import numpy as np
from absl import flags
from PIL import Image

from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.export.video import write_video
from bags_jax.report.pictures import to_uint8, write_png
from bags_jax.run import open_run, render_path

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_PATH = flags.DEFINE_enum("path", "spiral", ["test", "train", "spiral"], "Path of the camera.")
_FRAMES = flags.DEFINE_integer("frames", 120, "Number of frames of the spiral.", lower_bound=2)
_FPS = flags.DEFINE_float("fps", 30.0, "Frames per second of the film.", lower_bound=0.1, upper_bound=240)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the last.")
_DATA = flags.DEFINE_string("data_root", None, "Folder of the capture, if it has moved since training.")
_CACHE = flags.DEFINE_string("compilation_cache", "auto", "Folder of compiled programs; empty: none.")


def main() -> None:
    """Renders the run of the flags."""
    use_compilation_cache(_CACHE.value)
    run = open_run(_WORKDIR.value, step=_STEP.value, data_root=_DATA.value)
    folder = pathlib.Path(run.workdir) / "renders" / _PATH.value
    for old in folder.glob("[0-9][0-9][0-9][0-9].png"):  # an earlier film may have been longer
        old.unlink()
    files, shapes = [], set()
    for number, rendered in enumerate(render_path(run, _PATH.value, num_frames=_FRAMES.value)):
        files.append(folder / f"{number:04d}.png")
        shapes.add(rendered.image.shape)
        write_png(files[-1], to_uint8(rendered.image))
    if len(shapes) > 1:
        print(f"{len(files)} pictures in {folder}; no film, because their sizes differ")
        return
    film = folder.with_suffix(".mp4")
    write_video(film, (np.asarray(Image.open(file)) for file in files), fps=_FPS.value)
    print(f"{len(files)} pictures in {folder}, film: {film}")


def run() -> None:
    """The command `bags-jax render`."""
    launch(main)
