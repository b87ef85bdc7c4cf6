"""C++ for CPUs, built at first use by the system's compiler, and called by XLA (build.py).

rasterize.cc: binning.h, blend.h   rasterize/native.py calls it
blur.cc: blur.h                    blur_stream/rows_native.py calls it
ssim.cc: ssim.h                    ssim.py calls it
parallel.h, simd.h                 threads, and eight floats at a time
"""
