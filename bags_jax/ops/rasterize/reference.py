"""The oracle of `rasterize`: the same image, dense and without tiles. For tests and benchmarks only.

Every pixel blends every Gaussian in depth order. Memory: H * W * N floats. Gradients: plain autodiff.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.numerics import EXACT
from bags_jax.ops.limits import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from bags_jax.structs import Projected, RasterOutput


def _alphas(projected: Projected, pixels: Float[Array, "P 2"]) -> Float[Array, "P N"]:
    d = pixels[:, None, :] - projected.means_px[None]
    xx, xy, yy = projected.conics.T[:, None]
    sigma = 0.5 * (xx * d[..., 0] ** 2 + yy * d[..., 1] ** 2) + xy * d[..., 0] * d[..., 1]
    alpha = jnp.minimum(projected.opacities[None] * jnp.exp(-sigma), MAX_ALPHA)
    drawn = (projected.radii_px[:, 0] > 0)[None] & (sigma >= 0) & (alpha >= MIN_ALPHA)
    return jnp.where(drawn, alpha, 0.0)


def rasterize_reference(
    projected: Projected, features: Float[Array, "N D"], *, width: int, height: int, x0: int = 0, y0: int = 0
) -> RasterOutput:
    """Blends all Gaussians front to back at each pixel of a window (Kerbl et al. 2023, eq. 3).

    Args:
      projected: N Gaussians on the screen; radius 0 = culled.
      features: values to blend, D channels.
      width, height: size of the window, px.
      x0, y0: upper left corner of the window, px.
    """
    order = jnp.argsort(projected.depths, stable=True)
    columns, rows = jnp.meshgrid(jnp.arange(x0, x0 + width) + 0.5, jnp.arange(y0, y0 + height) + 0.5)
    alphas = _alphas(projected, jnp.stack([columns.ravel(), rows.ravel()], -1))[:, order]
    after = jnp.cumprod(1.0 - alphas, axis=1)
    before = jnp.concatenate([jnp.ones_like(after[:, :1]), after[:, :-1]], axis=1)
    # A pixel stops before the first Gaussian that would lower its transmittance to the limit.
    blended = jnp.where(jnp.cumsum(after <= MIN_TRANSMITTANCE, axis=1) == 0, alphas, 0.0)
    colors = jnp.matmul(blended * before, features[order], precision=EXACT)
    transmittance = jnp.prod(1.0 - blended, axis=1)
    return RasterOutput(
        colors=colors.reshape(height, width, -1),
        alphas=(1.0 - transmittance).reshape(height, width),
        num_intersections=jnp.int32(0),
        num_dropped=jnp.int32(0),
    )
