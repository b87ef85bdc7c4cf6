"""Writes a trained scene as a standard 3DGS PLY, which ordinary splat viewers open. The 3D filter is baked in.

  python -m experiments.export --workdir=runs/motion --output=scene.ply
"""

import jax
import numpy as np
from absl import flags

from experiments.launch import launch

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_OUTPUT = flags.DEFINE_string("output", None, "The .ply file to write.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; default: the last.")
flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
    """Exports from the flags."""
    from bags_jax.evaluate import open_run
    from bags_jax.export.ply import write_ply

    state = open_run(_WORKDIR.value, step=_STEP.value).state
    alive = np.asarray(state.alive)
    living = jax.tree.map(lambda x: np.asarray(x)[alive], state.gaussians)
    write_ply(_OUTPUT.value, living, np.asarray(state.filter_3d)[alive])
    print(f"{alive.sum()} Gaussians of step {int(state.step)} in {_OUTPUT.value}")


if __name__ == "__main__":
    launch(main)
