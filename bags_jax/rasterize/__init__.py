"""Differentiable splatting: `rasterize` blends projected Gaussians, `rasterization` speaks gsplat's language."""

from bags_jax.rasterize.cameras import rasterization
from bags_jax.rasterize.image import DEFAULT_TILE_SIZE, bucket, rasterize, room_for_all
from bags_jax.rasterize.tiles import count_intersections

__all__ = ["DEFAULT_TILE_SIZE", "bucket", "count_intersections", "rasterization", "rasterize", "room_for_all"]
