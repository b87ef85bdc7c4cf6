"""The rasterizer on its own CUDA kernels (bags_jax/cuda).

binning.py, blend.py   the kernels as functions of arrays
views.py               several cameras at once, gradients, vmap
"""

from bags_jax.ops.rasterize.cuda.binding import count_cuda, rasterize_cuda
from bags_jax.ops.toolchain.cuda_launch import is_available, require

__all__ = ["count_cuda", "is_available", "rasterize_cuda", "require"]
