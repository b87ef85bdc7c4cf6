"""Numbers that Python, C++, CUDA and Pallas share; the C++ and the CUDA get them as macros from toolchain/."""

MIN_ALPHA = 1.0 / 255.0  # a Gaussian is not drawn where its alpha is lower
MAX_ALPHA = 0.999  # alpha is clamped to this
MIN_TRANSMITTANCE = 1e-4  # a pixel stops before the Gaussian that would take its transmittance to this or below

CHANNELS = (1, 3, 4, 8)  # channel counts that blending is compiled for: depth, RGB, RGB and depth, and blocks of eight
STRIDES = (1, 2, 3, 4)  # strides that the blur is compiled for: side of the blocks of pixels that share a kernel
