"""Matrix products and convolutions as a GPU does them by default: inputs rounded to TF32, sums in float32."""

import functools

import jax
import jax.numpy as jnp
from jax._src.lax import convolution as _convolution
from jax._src.lax import lax as _lax

EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH)


def rounder(bits: int):
    """Rounds float32 to so many bits of mantissa (TF32: 10), to nearest; the gradient passes as it is."""
    dropped = 23 - bits

    @jax.custom_jvp
    def round_to(x):
        words = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(1 << (dropped - 1))
        return jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF), jnp.float32)

    round_to.defjvp(lambda primals, tangents: (round_to(*primals), tangents[0]))
    return round_to


def use(monkeypatch, bits: int = 10) -> list[str]:
    """From here on, what is traced rounds the inputs of every product whose precision is the default; returns what was rounded.

    The gradients of products are products: JAX makes them by the same two functions, so that they are rounded too.
    """
    round_to, seen = rounder(bits), []
    jax.clear_caches()  # of functions that were traced with exact products

    def rounding(function, name):
        @functools.wraps(function)
        def rounded(lhs, rhs, *args, precision=None, **kwargs):
            wanted = precision if isinstance(precision, tuple) else (precision,)
            if not any(p in EXACT for p in wanted) and lhs.dtype == rhs.dtype == jnp.float32:
                seen.append(name)
                lhs, rhs = round_to(lhs), round_to(rhs)
            return function(lhs, rhs, *args, precision=precision, **kwargs)

        return rounded

    for name, homes in {
        "dot_general": (jax.lax, _lax),
        "conv_general_dilated": (jax.lax, _convolution),
    }.items():
        function = rounding(getattr(jax.lax, name), name)
        for home in homes:
            monkeypatch.setattr(home, name, function)
    return seen
