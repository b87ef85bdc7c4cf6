"""Per-pixel kernels that never exist as a whole: last layer, softmax and weighted sum of shifted pixels in one operation.

kernels.py                   what a kernel is: its taps, their moments, how logits become weights
rows_xla.py                  the pass over one block of rows and its gradient, anywhere
rows_native.py               the same in C++ on a CPU
rows_cuda.py                 the same by own kernels on NVIDIA GPUs
stream.py                    block after block, in as much memory as there is
"""

from bags_jax.blur_stream.kernels import kernel_side, kernels_of, tap_moments
from bags_jax.blur_stream.stream import rows_per_block, stream_blur

__all__ = ["kernel_side", "kernels_of", "rows_per_block", "stream_blur", "tap_moments"]
