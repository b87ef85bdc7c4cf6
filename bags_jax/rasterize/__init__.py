"""Differentiable splatting: `rasterize` blends projected Gaussians, `rasterization` speaks gsplat's language."""

from bags_jax.rasterize.cameras import rasterization
from bags_jax.rasterize.image import DEFAULT_TILE_SIZE, bucket, capacity_for, rasterize
from bags_jax.rasterize.tiles import count_intersections

__all__ = ["DEFAULT_TILE_SIZE", "bucket", "capacity_for", "count_intersections", "rasterization", "rasterize"]
