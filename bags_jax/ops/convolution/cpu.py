"""A convolution whose gradients do not wait for XLA: its CPU code for weight gradients is slow."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.platforms import current_platform

BLOCK_BYTES = 1 << 20  # of shifted copies at a time: in the cache of a CPU core


def convolve(image: Float[Array, "h w Ci"], kernel: Float[Array, "K K Ci Co"]) -> Float[Array, "h w Co"]:
    """Correlates an image with a kernel of odd size, zeros around it (flax's nn.Conv with padding SAME).

    On a CPU the gradient of the kernel is one matrix product for each block of rows: K copies of the image shifted in x against
    K copies of the cotangent shifted in y. Elsewhere it is XLA's own.
    """
    return _convolve_cpu(image, kernel) if current_platform() == "cpu" else _convolve(image, kernel)


def _convolve(image, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(image[None], kernel, (1, 1), "SAME", dimension_numbers=dims)[0]


def _convolve_fwd(image, kernel):
    return _convolve(image, kernel), (image, kernel)


def _convolve_bwd(residuals, g):
    image, kernel = residuals
    return _convolve(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3)), _kernel_gradient(image, g, kernel.shape[0])


def _kernel_gradient(image: Float[Array, "h w Ci"], g: Float[Array, "h w Co"], size: int) -> Float[Array, "K K Ci Co"]:
    """Sum over pixels of image(x + k) g(x)."""
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
        # A row of the image belongs to the cotangent of the row above it for a tap below the centre.
        against = jnp.concatenate([g_part[i : i + rows] for i in reversed(range(size))], axis=-1).reshape(rows * w, -1)
        return total + jax.lax.dot_general(shifted, against, (((0,), (0,)), ((), ()))), None

    zeros = jnp.zeros((size * num_in, size * num_out))
    total = jax.lax.scan(add_block, zeros, jnp.arange(num_blocks))[0]
    return total.reshape(size, num_in, size, num_out).transpose(2, 0, 1, 3)


_convolve_cpu = jax.custom_vjp(_convolve)
_convolve_cpu.defvjp(_convolve_fwd, _convolve_bwd)
