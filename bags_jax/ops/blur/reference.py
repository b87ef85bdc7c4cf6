"""The oracle of `blur`: stores every kernel and applies it tap by tap. For tests, benchmarks and small fields only."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.blur.blocks import repeat_blocks, sum_blocks
from bags_jax.ops.blur.kernels import kernel_side, kernels_at
from bags_jax.structs import BlurField


def every_kernel(field: BlurField) -> Float[Array, "KK h w"]:
    """Computes all kernels of a field: 4.4 GiB for 17 x 17 taps at 2400 x 1600."""
    h, w, _ = field.features.shape
    rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    return jnp.moveaxis(kernels_at(field, rows, columns), -1, 0)


def apply_kernels(planes: Float[Array, "D H W"], kernels: Float[Array, "KK h w"], stride: int) -> Float[Array, "D H W"]:
    """Sums shifted images with weights per pixel (block): sum_k h_k(x) C(x + k)."""
    radius = kernel_side(kernels.shape[0]) // 2
    padded = jnp.pad(planes, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    return _gather_taps(padded, kernels, stride, *planes.shape[1:])


def _taps(side: int):
    """Returns index, dy and dx of each tap, counted from the upper left tap."""
    tap = jnp.arange(side * side)
    return tap, tap // side, tap % side


def _gather(padded, kernels, stride: int, height: int, width: int) -> Float[Array, "D H W"]:
    channels = padded.shape[0]

    def add_tap(total, tap):
        index, dy, dx = tap
        weight = repeat_blocks(kernels[index], stride, height, width)
        return total + weight[None] * jax.lax.dynamic_slice(padded, (0, dy, dx), (channels, height, width)), None

    return jax.lax.scan(add_tap, jnp.zeros((channels, height, width)), _taps(kernel_side(kernels.shape[0])))[0]


def _gather_fwd(padded, kernels, stride, height, width):
    return _gather(padded, kernels, stride, height, width), (padded, kernels)


def _gather_bwd(stride, height, width, residuals, g):
    padded, kernels = residuals
    shape = (padded.shape[0], height, width)

    def tap_gradients(d_padded, tap):
        index, dy, dx = tap
        corner = (0, dy, dx)
        weight = repeat_blocks(kernels[index], stride, height, width)
        d_weight = _dot_channels(g, jax.lax.dynamic_slice(padded, corner, shape))
        below = jax.lax.dynamic_slice(d_padded, corner, shape)
        return jax.lax.dynamic_update_slice(d_padded, below + weight[None] * g, corner), sum_blocks(d_weight, stride)

    return jax.lax.scan(tap_gradients, jnp.zeros_like(padded), _taps(kernel_side(kernels.shape[0])))


def _dot_channels(a: Float[Array, "D H W"], b: Float[Array, "D H W"]) -> Float[Array, "H W"]:
    """Sums over channels, unrolled: XLA's CPU code for a reduction over the leading axis is not vectorised."""
    return functools.reduce(jnp.add, [a[c] * b[c] for c in range(a.shape[0])])


_gather_taps = jax.custom_vjp(_gather, nondiff_argnums=(2, 3, 4))
_gather_taps.defvjp(_gather_fwd, _gather_bwd)
