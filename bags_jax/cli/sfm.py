"""Estimates the camera poses of a folder of photographs, or of a video (COLMAP, from pip).

  bags-jax sfm --input=photographs --output=my_capture
  bags-jax sfm --input=walk.mp4 --output=my_capture

Writes my_capture/images (upright copies, or the frames that were kept) and my_capture/sparse/0.
Without --output the poses are written beside the folder images/ of --input, and nothing is copied.
"""

from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.errors import UserError
from bags_jax.sfm.capture_folder import make_capture
from bags_jax.sfm.reconstruct import describe

_INPUT = flags.DEFINE_string("input", None, "Folder of photographs (directly in it, or in images/), or a video file.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the capture to write; by default --input itself.")
_ROOT = flags.DEFINE_string("root", None, "The same as --input without --output.")
_FRAMES = flags.DEFINE_integer("frames", 0, "Frames to keep of a video; 0: 60 to 150.", lower_bound=0)
_MAX_SIZE = flags.DEFINE_integer(
    "max_size", 800, "Longer side at which features are detected, px: smaller for large blur.", lower_bound=100
)


def main() -> None:
    """Estimates the poses of the source of the flags."""
    path = _INPUT.value or _ROOT.value
    if not path:
        raise UserError("--input is missing: expected a folder of photographs, or a video file; see --help")
    reconstruction = make_capture(
        path,
        _OUTPUT.value,
        max_size=_MAX_SIZE.value,
        num_frames=_FRAMES.value,
        report=lambda line: print(line, flush=True),
        has_bar=True,
    )
    print(describe(reconstruction))


def run() -> None:
    """The command `bags-jax sfm`."""
    launch(main)
