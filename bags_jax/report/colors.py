"""Colours of masks, blur kernels, widths and errors."""

import functools

import numpy as np
from jaxtyping import Float, UInt8

# sRGB colours from night blue over plum and coral to pale yellow. `colorize` spaces them by lightness: equal steps in
# value are equal steps in brightness, also when printed in grey.
_ANCHORS = np.array([[6, 8, 24], [58, 22, 92], [142, 40, 112], [226, 86, 84], [252, 164, 84], [255, 246, 204]])


def colorize(values: Float[np.ndarray, "*S"]) -> UInt8[np.ndarray, "*S 3"]:
    """Maps values in [0, 1] (clipped) to sRGB."""
    return palette()[np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)]


@functools.cache
def palette() -> UInt8[np.ndarray, "256 3"]:
    """The sRGB colours of the values 0, 1 / 255, .. 1."""
    linear = (_ANCHORS / 255.0) ** 2.2
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.cbrt(luminance)  # CIE L*, up to scale and offset
    places = (lightness - lightness[0]) / (lightness[-1] - lightness[0])
    values = np.arange(256) / 255.0
    channels = [np.interp(values, places, _ANCHORS[:, c]) for c in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)
