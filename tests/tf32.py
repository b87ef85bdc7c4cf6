"""Emulates the default matrix products and convolutions of a GPU: inputs rounded to TF32, sums in float32."""

import functools

import jax
import jax.numpy as jnp
from jax._src.lax import convolution as _convolution
from jax._src.lax import lax as _lax

EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH)


def rounder(bits: int):
    """Returns a function that rounds float32 to `bits` bits of mantissa (TF32: 10), to nearest, with gradient 1."""
    dropped = 23 - bits

    @jax.custom_jvp
    def round_to(x):
        words = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(1 << (dropped - 1))
        return jax.lax.bitcast_convert_type(words & jnp.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF), jnp.float32)

    round_to.defjvp(lambda primals, tangents: (round_to(*primals), tangents[0]))
    return round_to


def use(monkeypatch, bits: int = 10) -> list[str]:
    """Rounds the inputs of all products of default precision that are traced from now on. Returns their names.

    Gradients of products are products: JAX computes them by the same two functions, so they are rounded, too.
    """
    round_to, seen = rounder(bits), []
    jax.clear_caches()  # traces with exact products

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
