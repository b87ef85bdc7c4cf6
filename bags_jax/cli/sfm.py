"""Estimates the camera poses of your own photographs by structure from motion (COLMAP, from pip).

  bags-jax sfm --root=my_capture

Reads my_capture/images and writes my_capture/sparse/0.
"""

from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.sfm.reconstruct import describe, reconstruct

_ROOT = flags.DEFINE_string("root", None, "Folder of the capture, with photographs in images/.", required=True)
_MAX_SIZE = flags.DEFINE_integer(
    "max_size", 800, "Longer side at which features are detected, px: smaller for large blur.", lower_bound=100
)


def main() -> None:
    """Estimates the poses of the capture of the flags."""
    print(describe(reconstruct(_ROOT.value, max_size=_MAX_SIZE.value, report=lambda line: print(line, flush=True))))


def run() -> None:
    """The command `bags-jax sfm`."""
    launch(main)
