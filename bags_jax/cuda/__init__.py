"""Own CUDA kernels for NVIDIA GPUs, compute capability 8.0 and newer, and how they get into an XLA program.

binning.cu, blend.cu, blur.cu   the kernels; *.ptx is what nvcc makes of them (build.py), and what is shipped
launch.py                       how a kernel gets into a program, and whether it can

Their callers, as functions of arrays, are beside what they compute: rasterize/cuda/ and blur_stream/rows_cuda.py.
"""

CHANNELS = (
    1,
    3,
    4,
    8,
)  # that blending is compiled for: depth, RGB, RGB and depth; other numbers are padded, or cut into eights
STRIDES = (1, 2, 3, 4)  # that blurring is compiled for: side of the blocks of pixels that share a kernel
