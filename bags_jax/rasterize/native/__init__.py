"""The native CPU backend: C++ that is built at first use. `build` makes and loads it, `blend` is what JAX sees of it."""

from bags_jax.rasterize.native.blend import bin_pairs, count_pairs, rasterize_native
from bags_jax.rasterize.native.build import is_available, require

__all__ = ["bin_pairs", "count_pairs", "is_available", "rasterize_native", "require"]
