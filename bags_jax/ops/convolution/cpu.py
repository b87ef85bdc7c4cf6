"""A convolution with a gradient of its own for the kernel: XLA's CPU code for that gradient is slow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.convolution import xla

BLOCK_BYTES = 1 << 20  # size of a block of shifted copies: fits the cache of a CPU core


@jax.custom_vjp
def convolve(image: Float[Array, "h w Ci"], kernel: Float[Array, "K K Ci Co"]) -> Float[Array, "h w Co"]:
    """Correlates an image with a kernel of odd size, zeros beyond the border.

    The gradient of the kernel is one matrix product per block of rows: K copies of the image shifted in x times K
    copies of the cotangent shifted in y.
    """
    return xla.convolve(image, kernel)


def _convolve_fwd(image, kernel):
    return xla.convolve(image, kernel), (image, kernel)


def _convolve_bwd(residuals, g):
    image, kernel = residuals
    return xla.convolve(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3)), _kernel_gradient(image, g, kernel.shape[0])


def _kernel_gradient(image: Float[Array, "h w Ci"], g: Float[Array, "h w Co"], size: int) -> Float[Array, "K K Ci Co"]:
    """Sums image(x + k) g(x) over the pixels x."""
    h, w, num_in = image.shape
    num_out, radius = g.shape[-1], size // 2
    rows = min(h, max(1, BLOCK_BYTES // (4 * w * size * (num_in + num_out))))
    num_blocks = -(-h // rows)
    below = num_blocks * rows - h
    image = jnp.pad(image, ((0, below), (radius, radius), (0, 0)))
    g = jnp.pad(g, ((radius, radius + below), (0, 0), (0, 0)))

    def add_block(total, index):
        part = jax.lax.dynamic_slice_in_dim(image, index * rows, rows)
        g_part = jax.lax.dynamic_slice_in_dim(g, index * rows, rows + 2 * radius)
        shifted = jnp.concatenate([part[:, j : j + w] for j in range(size)], axis=-1).reshape(rows * w, -1)
        # A tap dy rows below the centre multiplies a row of the image with the cotangent dy rows above it.
        against = jnp.concatenate([g_part[i : i + rows] for i in reversed(range(size))], axis=-1).reshape(rows * w, -1)
        return total + jax.lax.dot_general(shifted, against, (((0,), (0,)), ((), ()))), None

    zeros = jnp.zeros((size * num_in, size * num_out))
    total = jax.lax.scan(add_block, zeros, jnp.arange(num_blocks))[0]
    return total.reshape(size, num_in, size, num_out).transpose(2, 0, 1, 3)


convolve.defvjp(_convolve_fwd, _convolve_bwd)
