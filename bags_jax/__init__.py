"""BAGS-JAX: sharp 3D Gaussian scenes from blurry photographs, as pure functions for CPU, GPU and TPU.

Splatting: `rasterization` (gsplat's interface: Gaussians and cameras in, images out) and, one level lower, `project` and
`rasterize`. Blur: `blur`, `BlurProposalNetwork`, and the protocol `BlurModel` for models of your own. Training: `train` and
`evaluate`, or `train_step` in your own loop. Files: `load_scene`, `make_scene` (embedded worlds), `write_ply`, `read_ply`.
"""

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.blur_model.protocol import BlurModel
from bags_jax.blur_model.statistics import kernel_statistics
from bags_jax.data import load_scene
from bags_jax.data.scene import Scene
from bags_jax.errors import UserError
from bags_jax.evaluation import evaluate
from bags_jax.export.ply import read_ply, write_ply
from bags_jax.geometry import project, smoothing_filter
from bags_jax.ops.blur import blur
from bags_jax.ops.blur.reference import apply_kernels
from bags_jax.ops.rasterize import rasterize
from bags_jax.rendering import render, render_blurred
from bags_jax.splatting import rasterization
from bags_jax.step import eval_step, train_step
from bags_jax.structs import BlurField, BlurMoments, Camera, Dataset, Gaussians, Projected, RasterOutput, TrainState
from bags_jax.synthetic import make_scene
from bags_jax.training import train

__version__ = "0.2.0"  # pyproject.toml reads it here

__all__ = [
    "BlurField",
    "BlurModel",
    "BlurMoments",
    "BlurProposalNetwork",
    "Camera",
    "Dataset",
    "Gaussians",
    "Projected",
    "RasterOutput",
    "Scene",
    "TrainState",
    "UserError",
    "apply_kernels",
    "blur",
    "eval_step",
    "evaluate",
    "kernel_statistics",
    "load_scene",
    "make_scene",
    "project",
    "rasterization",
    "rasterize",
    "read_ply",
    "render",
    "render_blurred",
    "smoothing_filter",
    "train",
    "train_step",
    "write_ply",
]
