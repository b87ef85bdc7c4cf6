"""Constants of structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5 px."""

import numpy as np

from bags_jax.ops.limits import WINDOW

SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2

_offsets = np.arange(WINDOW) - WINDOW // 2
TAPS = np.exp(-0.5 * (_offsets / SIGMA) ** 2)
TAPS = (TAPS / TAPS.sum()).astype(np.float32)  # the window is the outer product of TAPS with itself
