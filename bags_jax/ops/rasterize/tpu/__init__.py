"""The TPU backend: Pallas kernels and what calls them."""

from bags_jax.ops.rasterize.tpu.binding import count_tpu, interpreted, is_available, rasterize_tpu, require

__all__ = ["count_tpu", "interpreted", "is_available", "rasterize_tpu", "require"]
