"""Structural similarity by the C++ of this folder, which computes the gradient along with the value."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from bags_jax.ops.ssim.window import C1, C2, TAPS

LANES = 8  # floats of a vector, kLanes in simd.h


def _call(image, target, valid):
    height, width, channels = image.shape
    pitch = -(-width * channels // LANES) * LANES
    shapes = [(height,), image.shape, (3, height, pitch)]  # sums of rows; gradient; scratch memory
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call("bags_jax_ssim", results, vmap_method="sequential")
    sums, d_image, _ = call(image, target, valid, TAPS, c1=np.float32(C1), c2=np.float32(C2))
    return jnp.sum(sums), d_image


@jax.custom_vjp
def sum_similarities(
    image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]
) -> Float[Array, ""]:
    """Sums the similarities of all valid pixels and channels."""
    return _call(image, target, valid)[0]


sum_similarities.defvjp(_call, lambda d_image, g: (g * d_image, None, None))
