"""Structural similarity (Wang et al. 2004), as a loss: 11 x 11 Gaussian window of sigma 1.5, zeros beyond the border."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.ops.toolchain import cpp_build
from bags_jax.platforms import current_platform

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
LANES = 8  # numbers that the C++ takes at a time

_offsets = np.arange(WINDOW) - WINDOW // 2
TAPS = np.exp(-0.5 * (_offsets / SIGMA) ** 2)
TAPS = (TAPS / TAPS.sum()).astype(np.float32)


def ssim(image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean structural similarity over valid pixels.

    Invalid pixels count as beyond the border: a small image padded to a larger one has the SSIM that it had alone.
    Differentiable in the image alone, once. On a CPU in C++, where it can be built.
    """
    native = current_platform() == "cpu" and cpp_build.is_available()
    total = (_sum_native if native else _sum_xla)(image, jax.lax.stop_gradient(target), valid)
    return total / (jnp.maximum(jnp.sum(valid), 1) * image.shape[-1])


@jax.custom_vjp
def _gaussian_window(planes: Float[Array, "D H W"]) -> Float[Array, "D H W"]:
    """Separable 11 x 11 Gaussian filter, zeros beyond the border. Its matrix is symmetric: it is its own transpose.

    Sums of shifted planes. The barriers keep XLA from fusing the two passes, which would compute the first one 11 times over.
    """
    radius = WINDOW // 2
    _, height, width = planes.shape
    padded = jax.lax.optimization_barrier(jnp.pad(planes, ((0, 0), (radius, radius), (0, 0))))
    planes = functools.reduce(jnp.add, [TAPS[k] * padded[:, k : k + height] for k in range(WINDOW)])
    padded = jax.lax.optimization_barrier(jnp.pad(planes, ((0, 0), (0, 0), (radius, radius))))
    filtered = functools.reduce(jnp.add, [TAPS[k] * padded[:, :, k : k + width] for k in range(WINDOW)])
    return jax.lax.optimization_barrier(filtered)


_gaussian_window.defvjp(lambda planes: (_gaussian_window(planes), None), lambda _, g: (_gaussian_window(g),))


def _sum_xla(image, target, valid):
    """Sum of the similarities of all valid pixels and colours."""
    x, y = (jnp.where(valid[None], jnp.moveaxis(image, -1, 0), 0.0) for image in (image, target))
    channels = x.shape[0]
    means = _gaussian_window(jnp.concatenate([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = (means[k * channels : (k + 1) * channels] for k in range(5))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2.0 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2.0 * cov + C2) / (var_x + var_y + C2)
    return jnp.sum(jnp.where(valid[None], luminance * structure, 0.0))


def _sum_native_fwd(image, target, valid):
    height, width, channels = image.shape
    pitch = -(-width * channels // LANES) * LANES
    shapes = [(height,), image.shape, (3, height, pitch)]  # sums of rows; gradient; work space
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call("bags_jax_ssim", results, vmap_method="sequential")
    sums, d_image, _ = call(image, target, valid, TAPS, c1=np.float32(C1), c2=np.float32(C2))
    return jnp.sum(sums), d_image


@jax.custom_vjp
def _sum_native(image, target, valid):
    """_sum_xla; the gradient is made along with the value."""
    return _sum_native_fwd(image, target, valid)[0]


_sum_native.defvjp(_sum_native_fwd, lambda d_image, g: (g * d_image, None, None))
