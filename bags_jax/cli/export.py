"""Writes a trained scene as a standard 3DGS PLY, which ordinary splat viewers open. The 3D filter is baked in.

python -m experiments.export --workdir=runs/motion --output=scene.ply
"""

from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.export.splat import export

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The .ply file to write.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; default: the last.")


def main() -> None:
    """Exports from the flags."""
    count, step = export(_WORKDIR.value, _OUTPUT.value, step=_STEP.value)
    print(f"{count} Gaussians of step {step} in {_OUTPUT.value}")


def run() -> None:
    """The program, as a command."""
    launch(main)


if __name__ == "__main__":
    run()
