"""Writes a trained scene as a standard 3DGS PLY file, which splat viewers open.

  bags-jax export --workdir=runs/motion --output=scene.ply

The 3D smoothing filter is applied to the scales and opacities that are written.
"""

from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.export.splat import export

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The .ply file to write.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the last.")


def main() -> None:
    """Exports the run of the flags."""
    count, step = export(_WORKDIR.value, _OUTPUT.value, step=_STEP.value)
    print(f"{count} Gaussians of step {step} in {_OUTPUT.value}")


def run() -> None:
    """The command `bags-jax export`."""
    launch(main)
