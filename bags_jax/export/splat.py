"""A run as the splat file that other programs read, and how well they will show it."""

import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import trimesh

from bags_jax import metrics
from bags_jax.checkpoint import Checkpoints
from bags_jax.errors import UserError
from bags_jax.export.ply import read_ply, write_ply
from bags_jax.run import Run, render_scene_views
from bags_jax.spherical_harmonics import degree_of
from bags_jax.splatting import rasterization
from bags_jax.workdir import read_config


def export(workdir: str | pathlib.Path, path: str | pathlib.Path, *, step: int | None = None) -> tuple[int, int]:
    """Writes the living Gaussians of a run as a standard 3DGS PLY with the 3D filter baked in: (their number, the step).

    Raises:
      UserError: there is no checkpoint, or the file cannot be written.
    """
    if pathlib.Path(path).suffix.lower() != ".ply":
        raise UserError(f"the file to export to is {str(path)!r}, expected one that ends in .ply")
    read_config(workdir)  # says best what is wrong with a folder that is no run
    with Checkpoints(pathlib.Path(workdir).expanduser(), create=False) as checkpoints:
        living, filter_3d, step = checkpoints.restore_living(step)
    if not len(filter_3d):
        raise UserError(f"no Gaussian is left in the checkpoint of step {step}: there is nothing to export")
    write_ply(path, living, filter_3d)
    return len(filter_3d), step


def check_export(run: Run, path: str | pathlib.Path) -> str:
    """Exports the scene, reads the file back with another program's reader, renders it, and says how it compares.

    Viewers draw in one of two ways: antialiased as we do, or classic with 3DGS's 0.3 px^2, which makes splats under a
    pixel too heavy. Both are compared with our own picture of the first held-out view.
    """
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
