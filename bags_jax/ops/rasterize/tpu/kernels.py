"""Front-to-back blending of binned Gaussians on a TPU: Pallas kernels, forward and backward, one program a tile.

The pairs of all tiles lie one behind the other, 128 to a chunk, and a chunk is what a program works on at a time: its Gaussians are
the 128 lanes of a vector register, pixels are the sublanes. Light is then a running product along lanes, for which a TPU has no
instruction, but its matrix unit adds up logarithms: log(1 - alpha) times a triangle of ones is what each Gaussian leaves of each
pixel's light, all at once. The same triangle sums the light still to come in the backward pass (../blend_xla.py has the formula), and
gradients are sums over pixels: matrix products again. The next chunk is copied while one is worked on. What two tiles have of one
chunk's gradients is put together by the second, since a core's programs run one after the other.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from bags_jax.numerics import EXACT
from bags_jax.ops.limits import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from bags_jax.ops.rasterize.tiled import GEOMETRY, geometry_gradients

TILE = 16  # side, px
PIXELS = TILE * TILE
LANES = 128  # pairs of a chunk
SUBLANES = 8
FEATURES = 8  # first row of a chunk's features; before it GEOMETRY rows, and two that are not used
BUFFERS = 4  # chunks in fast memory: the first of this tile and of the next, and two that follow

LIGHT = pltpu.VMEM((PIXELS, LANES), jnp.float32)  # a number for each pixel of a tile, in every lane

_row = functools.partial(jax.lax.broadcasted_iota, jnp.int32)


class Inbox(NamedTuple):
    """Chunks of pairs in fast memory, and on their way there."""

    chunks: Any  # BUFFERS of them
    arrived: Any  # a semaphore for each

    @classmethod
    def shapes(cls, rows: int) -> "Inbox":
        return cls(pltpu.VMEM((BUFFERS, rows, LANES), jnp.float32), pltpu.SemaphoreType.DMA((BUFFERS,)))

    def copy(self, pairs, number, buffer):
        """The copy of a chunk into a buffer, to be started and to be waited for."""
        return pltpu.make_async_copy(_chunk(pairs, number), self.chunks.at[buffer], self.arrived.at[buffer])


class Outbox(NamedTuple):
    """Two chunks of gradients on their way out, by the parity of their number."""

    sums: Any
    sent: Any  # a semaphore for each
    held: Any  # their numbers; -1: none yet

    @classmethod
    def shapes(cls, rows: int) -> "Outbox":
        sums = pltpu.VMEM((2, rows, LANES), jnp.float32)
        return cls(sums, pltpu.SemaphoreType.DMA((2,)), pltpu.SMEM((2,), jnp.int32))

    def clear(self):
        self.held[0], self.held[1] = -1, -1

    def add(self, gradient, number, new):
        """Adds to a chunk and sends it; what an earlier tile has added to the same chunk goes along again."""
        parity = _rem(number, 2)
        last = self.held[parity]
        pl.when(last >= 0)(self._copy(gradient, last).wait)
        self.sums[parity] = jnp.where(last == number, self.sums[parity], 0.0) + new
        self.held[parity] = number
        self._copy(gradient, number).start()

    def close(self, gradient):
        """Waits until all is sent."""
        for number in (self.held[0], self.held[1]):
            pl.when(number >= 0)(self._copy(gradient, number).wait)

    def _copy(self, gradient, number):
        parity = _rem(number, 2)
        return pltpu.make_async_copy(self.sums.at[parity], _chunk(gradient, number), self.sent.at[parity])


def _chunk(array, number):
    return array.at[:, pl.ds(pl.multiple_of(number * LANES, LANES), LANES)]


def _dot(a, b, contract: tuple[int, int], precision: jax.lax.Precision = EXACT):
    """A matrix product over one axis of each, in float32 whatever jax.default_matmul_precision says."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _div(a, b: int):
    return jax.lax.div(a, jnp.int32(b))  # not //, which asks JAX for the TPU that it runs on


def _rem(a, b: int):
    return jax.lax.rem(a, jnp.int32(b))


def _running_sum(x: Float[Array, "P 128"]):
    """Sums along lanes, each with its own: products with a triangle of ones, which bf16 holds exactly, of x in three parts."""
    shape = (LANES, LANES)
    triangle = (_row(shape, 0) <= _row(shape, 1)).astype(jnp.bfloat16)
    total, rest = jnp.zeros_like(x), x
    for _ in range(3):
        part = rest.astype(jnp.bfloat16)
        rest = rest - part.astype(jnp.float32)
        total += _dot(part, triangle, (1, 0), jax.lax.Precision.DEFAULT)
    return total


def _last(x: Float[Array, "P 128"]):
    """The last lane, in every lane."""
    return jnp.broadcast_to(x[:, LANES - 1 :], x.shape)


def _falloff(chunk: Float[Array, "8 128"], live: Bool[Array, "1 128"]):
    """Clamped alpha of every pixel and Gaussian, and the falloff before the clamp (0 where it is not drawn)."""
    x, y, xx, xy, yy, opacity = (chunk[k : k + 1] for k in range(GEOMETRY))
    side = _row((TILE, LANES), 0).astype(jnp.float32) + (0.5 - TILE / 2)
    dx, dy = x - side, y - side
    of_x, of_y, mixed = 0.5 * xx * dx * dx, 0.5 * yy * dy * dy, xy * dy
    sigma = (of_x[None] + of_y[:, None] + mixed[:, None] * dx[None]).reshape(PIXELS, LANES)
    raw = jnp.where(live, opacity, 0.0) * jnp.exp(-sigma)
    raw = jnp.where((raw >= MIN_ALPHA) & (sigma >= 0.0), raw, 0.0)
    return jnp.minimum(raw, MAX_ALPHA), raw


def _absorb(alpha, log_light):
    """Light before each Gaussian, its weight, and log of the light behind the chunk. The light of a pixel only falls: where it is
    too little behind a Gaussian, it is behind all that follow."""
    absorbed = jnp.log(1.0 - alpha)
    log_behind = log_light + _running_sum(absorbed)
    before = jnp.exp(log_behind - absorbed)
    goes_on = before * (1.0 - alpha) > MIN_TRANSMITTANCE
    return before, jnp.where(goes_on, alpha * before, 0.0), _last(log_behind)


def _for_chunks(starts, pairs, inbox: Inbox, log_light, columns: int, work):
    """Calls work(number of the chunk, its rows about the tile's centre, which lanes are the tile's) until the tile is opaque."""
    tile, last_tile = pl.program_id(0), pl.num_programs(0) - 1
    begin, end = starts[tile], starts[tile + 1]
    first = _div(begin, LANES)
    stop = jnp.where(begin < end, _div(end + (LANES - 1), LANES), first)
    center = [part * TILE + TILE // 2 for part in (_rem(tile, columns), _div(tile, columns))]

    copy = functools.partial(inbox.copy, pairs)

    def buffer_of(number):
        return jnp.where(number == first, _rem(tile, 2), 2 + _rem(number, 2))

    @pl.when(tile == 0)
    def _():
        copy(first, 0).start()

    @pl.when(tile < last_tile)
    def _():
        copy(_div(end, LANES), _rem(tile + 1, 2)).start()

    copy(first, _rem(tile, 2)).wait()

    def body(carry):
        number, _ = carry

        @pl.when(number + 1 < stop)
        def _():
            copy(number + 1, buffer_of(number + 1)).start()

        @pl.when(number > first)
        def _():
            copy(number, buffer_of(number)).wait()

        rows = inbox.chunks[buffer_of(number)]
        geometry, features = rows[:FEATURES], rows[FEATURES:]
        about = _row((FEATURES, 1), 0)
        about = jnp.where(about == 0, center[0], jnp.where(about == 1, center[1], 0)).astype(jnp.float32)
        slot = number * LANES + _row((1, LANES), 1)
        work(number, geometry - about, features, (slot >= begin) & (slot < end))
        return number + 1, jnp.max(log_light[...])

    log_light[...] = jnp.zeros_like(log_light)
    goes_on = lambda carry: (carry[0] < stop) & (carry[1] > jnp.log(jnp.float32(MIN_TRANSMITTANCE)))
    number, _ = jax.lax.while_loop(goes_on, body, (first, jnp.float32(0.0)))

    @pl.when((number < stop) & (number > first))
    def _():
        copy(number, buffer_of(number)).wait()  # on its way, and not needed any more


def forward_kernel(starts, pairs, image, inbox: Inbox, log_light, *, columns: int):
    """Blends one tile."""
    image[...] = jnp.zeros_like(image)

    def work(_, geometry, features, live):
        alpha, _ = _falloff(geometry, live)
        _, weight, log_light[...] = _absorb(alpha, log_light[...])
        image[0] += _dot(jnp.where(live, features, 0.0), weight, (1, 1))

    _for_chunks(starts, pairs, inbox, log_light, columns, work)


def backward_kernel(
    starts, pairs, image, cotangent, _, gradient, inbox: Inbox, log_light, outbox: Outbox, to_come, *, columns: int
):
    """What one tile adds to the gradients of its pairs."""
    tile = pl.program_id(0)
    g = cotangent[0]
    to_come[...] = _dot(image[0] * g, jnp.ones((g.shape[0], LANES), jnp.float32), (0, 0))
    pixel = _row((SUBLANES, PIXELS), 1)
    x, y = (part.astype(jnp.float32) + (0.5 - TILE / 2) for part in (_rem(pixel, TILE), _div(pixel, TILE)))
    kind = _row((SUBLANES, PIXELS), 0)
    basis = jnp.ones_like(x)
    for index, power in enumerate((x, y, x * x, x * y, y * y), start=1):
        basis = jnp.where(kind == index, power, basis)

    pl.when(tile == 0)(outbox.clear)

    def work(number, geometry, features, live):
        alpha, raw = _falloff(geometry, live)
        before, weight, log_light[...] = _absorb(alpha, log_light[...])
        toward = _dot(g, jnp.where(live, features, 0.0), (0, 0))
        remainder = to_come[...] - _running_sum(weight * toward)
        to_come[...] = _last(remainder)
        d_alpha = before * toward - remainder / (1.0 - alpha)
        slope = jnp.where((weight > 0.0) & (raw < MAX_ALPHA), -d_alpha * raw, 0.0)
        moments = _dot(basis, slope, (1, 0))
        d_geometry = geometry_gradients(*([x[k : k + 1] for k in range(GEOMETRY)] for x in (geometry, moments)))
        unused = [jnp.zeros((1, LANES))] * (FEATURES - GEOMETRY)
        new = jnp.concatenate([*d_geometry, *unused, _dot(g, weight, (1, 0))])
        outbox.add(gradient, number, jnp.where(live, new, 0.0))

    _for_chunks(starts, pairs, inbox, log_light, columns, work)

    @pl.when(tile == pl.num_programs(0) - 1)
    def _():
        outbox.close(gradient)
