"""Where alpha blending begins and ends; the same numbers for every rasterizer and for the oracle."""

MIN_ALPHA = 1.0 / 255.0  # a Gaussian is not drawn where its alpha is lower
MAX_ALPHA = 0.999  # alpha is clamped here
MIN_TRANSMITTANCE = 1e-4  # a pixel stops before the Gaussian that would take its transmittance to this or below
