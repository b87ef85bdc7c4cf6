"""The Gaussians of another scene, from which training starts."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np

from bags_jax.checkpoint import Checkpoints
from bags_jax.errors import UserError
from bags_jax.export.ply import read_ply
from bags_jax.spherical_harmonics import num_coefficients
from bags_jax.structs import Gaussians
from bags_jax.workdir import CONFIG_FILE


def read_gaussians(path: str, *, sh_degree: int) -> Gaussians:
    """Reads the Gaussians of a run, or of a PLY file in the frame of the capture (bags-jax export --upright=False).

    Args:
      path: working directory of a run, whose last checkpoint is read, or a file that ends in .ply.
      sh_degree: spherical harmonics of a higher degree are dropped, missing ones are 0.
    Raises:
      UserError: neither of the two, or it cannot be read.
    """
    place = pathlib.Path(path).expanduser()
    if place.suffix.lower() == ".ply":
        gaussians = read_ply(place)
    elif (place / CONFIG_FILE).is_file():
        with Checkpoints(place, create=False) as checkpoints:
            gaussians, _, _ = checkpoints.restore_living()
    else:
        raise UserError(f"config.init.scene is {path}, expected the working directory of a run, or a .ply file")
    rest = np.asarray(gaussians.sh_rest)[:, : num_coefficients(sh_degree) - 1]
    missing = num_coefficients(sh_degree) - 1 - rest.shape[1]
    return dataclasses.replace(gaussians, sh_rest=jnp.asarray(np.pad(rest, [(0, 0), (0, missing), (0, 0)])))
