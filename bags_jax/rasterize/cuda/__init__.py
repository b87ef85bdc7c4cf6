"""The rasterizer on its own CUDA kernels (bags_jax/cuda).

binning.py, blend.py   the kernels as functions of arrays
views.py               several cameras at once, gradients, vmap
"""

from bags_jax.cuda.launch import is_available, require
from bags_jax.rasterize.cuda.views import count_cuda, rasterize_cuda

__all__ = ["count_cuda", "is_available", "rasterize_cuda", "require"]
