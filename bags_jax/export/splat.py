"""Exports a run as a splat file (PLY) and measures how other viewers will show it."""

import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax import metrics
from bags_jax.checkpoint import Checkpoints
from bags_jax.errors import UserError
from bags_jax.export.ply import read_ply, write_ply
from bags_jax.run import Run, render_scene_views
from bags_jax.spherical_harmonics import degree_of
from bags_jax.splatting import rasterization
from bags_jax.workdir import read_settings


def export(workdir: str | pathlib.Path, path: str | pathlib.Path, *, step: int | None = None) -> tuple[int, int]:
    """Writes the living Gaussians of a run as a standard 3DGS PLY with the 3D filter baked in.

    Args:
      workdir: folder of the run.
      path: the file; must end in .ply.
      step: step of the checkpoint; None: the last one.
    Returns:
      (number of Gaussians, step of the checkpoint).
    Raises:
      UserError: no run, no checkpoint, no living Gaussian, or the file cannot be written.
    """
    if pathlib.Path(path).suffix.lower() != ".ply":
        raise UserError(f"the output file is {str(path)!r}; expected a name that ends in .ply")
    read_settings(workdir)  # raises the clearest error for a folder without a run
    with Checkpoints(pathlib.Path(workdir).expanduser(), create=False) as checkpoints:
        living, filter_3d, step = checkpoints.restore_living(step)
    if not len(filter_3d):
        raise UserError(f"the checkpoint of step {step} has no living Gaussian: export another step")
    write_ply(path, living, filter_3d)
    return len(filter_3d), step


def check_export(run: Run, path: str | pathlib.Path) -> str:
    """Exports a run, reads the file back, renders the first held-out view, and compares it with our own render.

    Renders in both modes that viewers use: antialiased (our own mode), and classic, where the 0.3 px^2 filter of 3DGS
    makes splats smaller than a pixel too opaque. Counts the Gaussians with trimesh, an independent reader.

    Returns:
      One line of text with the number of Gaussians and the PSNR of each mode.
    """
    import trimesh

    count, _ = export(run.workdir, path, step=int(run.state.step))
    independent = len(cast(Any, trimesh.load(path)).vertices)
    saved, scene, first = read_ply(path), run.scene, run.scene.test_ids[0]
    ours = np.asarray(next(render_scene_views(run, [first])).image)
    height, width = ours.shape[:2]
    colors = jnp.concatenate([saved.sh_dc, saved.sh_rest], axis=1)
    found = []
    for mode, eps2d in (("antialiased", 0.1), ("classic", 0.3)):
        image, _, _ = rasterization(
            means=saved.means,
            quats=saved.quats,
            scales=jnp.exp(saved.log_scales),
            opacities=jax.nn.sigmoid(saved.logit_opacities),
            colors=colors,
            viewmats=jnp.asarray(scene.viewmats[[first]]),
            Ks=jnp.asarray(scene.Ks[[first]]),
            width=width,
            height=height,
            sh_degree=degree_of(colors.shape[1]),
            backgrounds=jnp.asarray([scene.background]),
            near_plane=run.job.near_plane,
            eps2d=eps2d,
            rasterize_mode=mode,
        )
        error = float(np.mean((np.clip(image[0], 0, 1) - np.clip(ours, 0, 1)) ** 2))
        found.append(f"{mode} (eps2d {eps2d}) {metrics.psnr_of_mse(error):.1f} dB")
    return (
        f"{path}: {count} Gaussians, {independent} by trimesh; rendered again, against our picture: {', '.join(found)}"
    )
