"""Figures for a deblurred scene without sharp photographs. None of the three proves that the scene is sharp.

re-blur PSNR       Training views: the render, blurred by the blur model, against the photograph. A high value says that
                   scene and blur model explain the photographs together. A blur model that is too free reaches a high
                   value with a blurry scene. Plain splatting, which fits the blurry photographs directly, does so too.
sharpness gain     Training views: gradient energy of the sharp render divided by that of the photograph. Above 1: the
                   render has steeper edges. Noise and floaters raise the gain; a sharp photograph leaves it near 1.
fitted re-blur     Held-out views whose photographs may be blurry: the render, blurred by the one kernel that fits best,
                   against the photograph. The kernel is fitted to the photograph that it is scored on. This ignores
                   uniform blur, and shifts smaller than the kernel, so it scores geometry and colours, not sharpness.
                   Blur that varies over the picture lowers the score.
"""

import statistics
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from bags_jax.metrics import psnr_of_mse

_MAX_EQUATIONS = 200_000  # of a kernel fit, pixels times channels: enough for K x K unknowns
_FIT_STEPS = 600
_LUMA = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709

Picture = Float[np.ndarray, "H W 3"]  # sRGB in [0, 1]


def gradient_energy(picture: Float[Array | np.ndarray, "H W 3"], valid: Bool[np.ndarray, "H W"] | None = None) -> float:
    """Mean squared Sobel gradient of the luma of valid pixels (Tenenbaum 1970), 1/px^2, without the border pixels."""
    import scipy.ndimage

    luma = np.asarray(picture, np.float64) @ _LUMA
    dx, dy = (scipy.ndimage.sobel(luma, axis=axis)[1:-1, 1:-1] / 8.0 for axis in (1, 0))
    energy = dx**2 + dy**2
    return float(np.mean(energy if valid is None else energy[valid[1:-1, 1:-1]]))


def fit_kernel(sharp: Picture, photo: Picture, *, side: int) -> Float[np.ndarray, "K K"]:
    """Fits the blur kernel h between a sharp picture and a photograph by least squares; taps >= 0 that sum to 1.

    photo(x) = sum_k h(k) sharp(x + k), for pixels at least K // 2 from the border; one kernel for all channels. Solves
    the normal equations by accelerated projected gradients (Beck and Teboulle 2009) on the simplex. Large pictures
    contribute only every n-th row (_MAX_EQUATIONS).

    Args:
      sharp: the render, sRGB in [0, 1].
      photo: the photograph, sRGB in [0, 1].
      side: K, odd, smaller than the picture.
    """
    radius = side // 2
    windows = np.lib.stride_tricks.sliding_window_view(sharp.astype(np.float64), (side, side), axis=(0, 1))
    target = photo[radius : photo.shape[0] - radius, radius : photo.shape[1] - radius].astype(np.float64)
    every = max(1, -(-target.size // _MAX_EQUATIONS))
    gram, moment = np.zeros((side * side, side * side)), np.zeros(side * side)
    for row in range(every // 2, len(target), every):
        taps = windows[row].reshape(-1, side * side)  # (W 3, K K)
        gram += taps.T @ taps
        moment += taps.T @ target[row].reshape(-1)
    return _solve_on_simplex(gram, moment).reshape(side, side)


def _solve_on_simplex(gram: Float[np.ndarray, "n n"], moment: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """argmin h' G h / 2 - m' h over h >= 0, sum h = 1. Resets the momentum when it points uphill."""
    step = 1.0 / max(float(np.linalg.eigvalsh(gram)[-1]), 1e-12)
    best = ahead = np.full(len(moment), 1.0 / len(moment))
    momentum = 1.0
    for _ in range(_FIT_STEPS):
        slope = gram @ ahead - moment
        new = _project_onto_simplex(ahead - step * slope)
        faster = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        if slope @ (new - best) > 0:
            ahead, momentum = new, 1.0
        else:
            ahead, momentum = new + (momentum - 1.0) / faster * (new - best), faster
        best = new
    return best


def _project_onto_simplex(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The nearest point with entries >= 0 that sum to 1 (Duchi et al. 2008, fig. 1)."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1.0) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess[np.nonzero(falling > excess)[0][-1]], 0.0)


def apply_kernel(sharp: Picture, kernel: Float[np.ndarray, "K K"]) -> Float[np.ndarray, "_h _w 3"]:
    """sum_k h(k) sharp(x + k), without the K // 2 px along each border. By FFT: importing scipy.signal takes longer."""
    height, width, _ = sharp.shape
    side = len(kernel)
    spectrum = np.fft.rfft2(kernel[::-1, ::-1], (height, width))[..., None]
    blurred = np.fft.irfft2(
        np.fft.rfft2(sharp.astype(np.float64), axes=(0, 1)) * spectrum, (height, width), axes=(0, 1)
    )
    return blurred[side - 1 :, side - 1 :]


def score_training_view(
    sharp: Picture, blurred: Picture, photo: UInt8[np.ndarray, "H W 3"], valid: Bool[np.ndarray, "H W"] | None = None
) -> dict:
    """Scores the sharp and the blurred render of one training view, where the photograph is valid.

    sharpness_gain is None for a uniform photograph.
    """
    truth, used = photo / 255.0, slice(None) if valid is None else valid
    energy = gradient_energy(truth, valid)
    gain = gradient_energy(np.clip(sharp, 0.0, 1.0), valid) / energy if energy > 0 else None
    return {"reblur_PSNR": _psnr(blurred[used], truth[used]), "sharpness_gain": gain}


def score_held_out_view(sharp: Picture, photo: UInt8[np.ndarray, "H W 3"], *, side: int) -> dict:
    """Scores one held-out view: PSNR after the best kernel, and that kernel's width and shift, px."""
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
    """Mean re-blur PSNR, median sharpness gain, mean fitted re-blur PSNR (None: no views), and all figures by view."""
    gains = [view["sharpness_gain"] for view in training.values() if view["sharpness_gain"] is not None]
    return {
        "has_blur_model": has_blur_model,
        "reblur_PSNR": statistics.fmean(view["reblur_PSNR"] for view in training.values()) if training else None,
        "sharpness_gain": statistics.median(gains) if gains else None,
        "held_out_fitted_PSNR": statistics.fmean(v["fitted_PSNR"] for v in held_out.values()) if held_out else None,
        "per_view": {"training": dict(training), "held_out": dict(held_out)},
    }


def format_rows(no_truth: Mapping) -> list[list[str]]:
    """Formats the summary as table rows: name, value, and a text that says how to read the value."""
    sides = [view["kernel_size"] for view in no_truth["per_view"]["held_out"].values()]
    model = "render blurred by the blur model" if no_truth["has_blur_model"] else "render (no blur model)"
    kernel = f"one {max(sides)} x {max(sides)} kernel" if sides else "one kernel"
    return [
        [
            "re-blur PSNR, training views",
            _cell(no_truth["reblur_PSNR"], "dB"),
            f"{model} against the photograph: a good fit, sharp or not",
        ],
        [
            "sharpness gain, training views",
            _cell(no_truth["sharpness_gain"], "x"),
            "median gradient energy, render over photograph: noise counts as sharp",
        ],
        [
            "fitted re-blur PSNR, held-out views",
            _cell(no_truth["held_out_fitted_PSNR"], "dB"),
            f"after {kernel} fitted to each view: ignores blur and shift, says nothing of sharpness",
        ],
    ]


def _cell(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f} {unit}"
