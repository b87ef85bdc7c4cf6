"""What can be said of a deblurred scene without any sharp photograph. Three figures, none of which is a proof of sharpness:

re-blur PSNR       the blur model's picture of a training view against the photograph that it was trained on. It says that
                   scene and blur model explain the photographs together. A blur model that is too free explains them
                   with a blurry scene just as well, and plain splatting, which fits the blur itself, scores high.
sharpness gain     gradient energy of the sharp render over that of the photograph. Above 1: the render has steeper edges.
                   Noise and floaters have steep edges too, and a photograph that was sharp from the start gains nothing.
fitted re-blur     a held-out view, blurred by the one kernel that suits it best, against its photograph, for captures of which the
                   held-out photographs are blurry too. The kernel is fitted to the very photograph it is scored on: the figure forgives
                   any uniform blur and any shift within the kernel, so it says that the geometry and the colours are
                   right, and nothing of sharpness. Blur that varies over the picture is not forgiven.
"""

import statistics
from collections.abc import Mapping

import numpy as np
import scipy.ndimage
import scipy.signal
from jaxtyping import Array, Float, UInt8

from bags_jax.metrics import psnr_of_mse

_MAX_EQUATIONS = 200_000  # pixels times channels that a kernel is fitted to: K x K unknowns need no more
_FIT_STEPS = 600
_LUMA = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709

Picture = Float[np.ndarray, "H W 3"]  # sRGB in [0, 1]


def sharpness(picture: Float[Array | np.ndarray, "H W 3"]) -> float:
    """Gradient energy: mean of the squared Sobel gradient of the luma (Tenenbaum 1970), per px^2; the rim is left out."""
    luma = np.asarray(picture, np.float64) @ _LUMA
    dx, dy = (scipy.ndimage.sobel(luma, axis=axis)[1:-1, 1:-1] / 8.0 for axis in (1, 0))
    return float(np.mean(dx**2 + dy**2))


def fit_kernel(sharp: Picture, photo: Picture, *, side: int) -> Float[np.ndarray, "K K"]:
    """The kernel that makes a photograph of a sharp picture: least squares, taps of at least 0 that sum to 1.

    photo(x) = sum_k h(k) sharp(x + k) over the pixels that see no border, one kernel for the view and all channels. Solved on the
    normal equations by accelerated projected gradients (Beck and Teboulle 2009) on the simplex. Large pictures are
    thinned to every n-th row.

    Args:
      sharp: the render, photo: the photograph; sRGB in [0, 1].
      side: K, odd, smaller than the picture.
    """
    radius = side // 2
    windows = np.lib.stride_tricks.sliding_window_view(sharp.astype(np.float64), (side, side), axis=(0, 1))  # type: ignore[call-overload]
    target = photo[radius : photo.shape[0] - radius, radius : photo.shape[1] - radius].astype(np.float64)
    every = max(1, -(-target.size // _MAX_EQUATIONS))
    gram, moment = np.zeros((side * side, side * side)), np.zeros(side * side)
    for row in range(every // 2, len(target), every):
        taps = windows[row].reshape(-1, side * side)  # (W 3, K K)
        gram += taps.T @ taps
        moment += taps.T @ target[row].reshape(-1)
    return _least_squares_on_simplex(gram, moment).reshape(side, side)


def _least_squares_on_simplex(gram: Float[np.ndarray, "n n"], moment: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """argmin h' G h / 2 - m' h over h >= 0, sum h = 1; momentum starts anew where it leads uphill."""
    step = 1.0 / max(float(np.linalg.eigvalsh(gram)[-1]), 1e-12)
    best = ahead = np.full(len(moment), 1.0 / len(moment))
    momentum = 1.0
    for _ in range(_FIT_STEPS):
        slope = gram @ ahead - moment
        new = _onto_simplex(ahead - step * slope)
        faster = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        if slope @ (new - best) > 0:
            ahead, momentum = new, 1.0
        else:
            ahead, momentum = new + (momentum - 1.0) / faster * (new - best), faster
        best = new
    return best


def _onto_simplex(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The nearest point with entries of at least 0 that sum to 1 (Duchi et al. 2008, fig. 1)."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1.0) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess[np.nonzero(falling > excess)[0][-1]], 0.0)


def apply_kernel(sharp: Picture, kernel: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "_h _w 3"]:
    """sum_k h(k) sharp(x + k), without the rim of K // 2 px that would see beyond the border."""
    turned = kernel[::-1, ::-1, None]
    return scipy.signal.fftconvolve(sharp.astype(np.float64), turned, mode="valid", axes=(0, 1))


def training_view(sharp: Picture, blurred: Picture, photo: UInt8[np.ndarray, "H W 3"]) -> dict:
    """Figures of one training view: its sharp render, that render blurred by the blur model, and the photograph."""
    truth = photo / 255.0
    energy = sharpness(truth)
    return {
        "reblur_PSNR": _psnr(blurred, truth),
        "sharpness_gain": sharpness(np.clip(sharp, 0.0, 1.0)) / energy
        if energy > 0
        else None,  # None: a flat photograph
    }


def held_out_view(sharp: Picture, photo: UInt8[np.ndarray, "H W 3"], *, side: int) -> dict:
    """Figures of one held-out view: PSNR after the best kernel, and how much that kernel forgave: width and shift, px."""
    side = min(side, (min(photo.shape[:2]) - 1) // 2 | 1)
    sharp, truth, radius = np.clip(sharp, 0.0, 1.0), photo / 255.0, side // 2
    kernel = fit_kernel(sharp, truth, side=side)
    offsets = np.stack(np.meshgrid(*2 * [np.arange(side) - radius]), axis=-1)  # dx, dy of each tap
    shift = np.sum(kernel[..., None] * offsets, axis=(0, 1))
    spread = np.sum(kernel * np.sum((offsets - shift) ** 2, axis=-1))
    inside = truth[radius : truth.shape[0] - radius, radius : truth.shape[1] - radius]
    return {
        "fitted_PSNR": _psnr(apply_kernel(sharp, kernel), inside),
        "kernel_size": side,
        "kernel_rms_px": float(np.sqrt(spread)),
        "kernel_shift_px": [float(x) for x in shift],
    }


def _psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    return psnr_of_mse(float(np.mean((np.clip(picture, 0.0, 1.0) - truth) ** 2)))


def summarize(training: Mapping[str, dict], held_out: Mapping[str, dict], *, has_blur_model: bool) -> dict:
    """Mean re-blur PSNR, median sharpness gain, mean fitted re-blur PSNR, and all of it by view; None for what there is not."""
    gains = [view["sharpness_gain"] for view in training.values() if view["sharpness_gain"] is not None]
    return {
        "has_blur_model": has_blur_model,
        "reblur_PSNR": statistics.fmean(view["reblur_PSNR"] for view in training.values()) if training else None,
        "sharpness_gain": statistics.median(gains) if gains else None,
        "held_out_fitted_PSNR": statistics.fmean(v["fitted_PSNR"] for v in held_out.values()) if held_out else None,
        "per_view": {"training": dict(training), "held_out": dict(held_out)},
    }


def table_rows(no_truth: Mapping) -> list[list[str]]:
    """The three figures with the words that say what they are; header: without sharp truth, value, what it says."""
    sides = [view["kernel_size"] for view in no_truth["per_view"]["held_out"].values()]
    model = "render blurred by the blur model" if no_truth["has_blur_model"] else "render (no blur model)"
    kernel = f"one {max(sides)} x {max(sides)} kernel" if sides else "one kernel"
    return [
        [
            "re-blur PSNR, training views",
            _cell(no_truth["reblur_PSNR"], "dB"),
            f"{model} against the photograph: fits, sharp or not",
        ],
        [
            "sharpness gain, training views",
            _cell(no_truth["sharpness_gain"], "x"),
            "median gradient energy, render over photograph: noise counts as sharp",
        ],
        [
            "fitted re-blur PSNR, held-out views",
            _cell(no_truth["held_out_fitted_PSNR"], "dB"),
            f"after {kernel} fitted to each view: forgives blur and shift, says nothing of sharpness",
        ],
    ]


def _cell(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f} {unit}"
