"""Numbers that Python, C++, CUDA and Pallas share. toolchain/ passes them to C++ and CUDA as macros."""

MIN_ALPHA = 1.0 / 255.0  # a Gaussian is skipped where its alpha is lower
MAX_ALPHA = 0.999  # alpha is clamped to this
MIN_TRANSMITTANCE = 1e-4  # a pixel stops before the Gaussian that would lower its transmittance to this or below

CHANNELS = (1, 3, 4, 8)  # channel counts that blending is compiled for: depth, RGB, RGB and depth, blocks of eight
TILE = 16  # side of a tile of the CUDA and Pallas kernels, px

STRIDES = (1, 2, 3, 4)  # strides that the blur is compiled for: side of the blocks of pixels that share a kernel
COLORS = 3  # channels of an image that the blur is compiled for
WINDOW = 11  # side of the window of structural similarity, px
