"""Camera poses of your own photographs, by structure from motion (COLMAP, which pip has installed).

python -m experiments.sfm --root=my_capture
"""

from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.sfm.reconstruct import describe, reconstruct

_ROOT = flags.DEFINE_string(
    "root", None, "Folder of the capture: photographs in images/, the model goes to sparse/0.", required=True
)
_MAX_SIZE = flags.DEFINE_integer(
    "max_size", 800, "Longer side at which features are looked for, px: smaller for large blur.", lower_bound=100
)


def main() -> None:
    """Estimates the poses from the flags."""
    print(describe(reconstruct(_ROOT.value, max_size=_MAX_SIZE.value, report=lambda line: print(line, flush=True))))


def run() -> None:
    """The program, as a command."""
    launch(main)


if __name__ == "__main__":
    run()
