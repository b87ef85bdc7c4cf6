"""Own CUDA kernels: binning and blending for NVIDIA GPUs, compute capability 8.0 and newer.

binning.cu, blend.cu   the kernels; *.ptx is what nvcc makes of them (build.py), and what is shipped
launch.py              how a kernel gets into an XLA program, and whether it can
binning.py, blend.py   the kernels as functions of arrays
views.py               several cameras at once, gradients, vmap
"""

from bags_jax.rasterize.cuda.launch import is_available, require
from bags_jax.rasterize.cuda.views import count_cuda, rasterize_cuda

__all__ = ["count_cuda", "is_available", "rasterize_cuda", "require"]
