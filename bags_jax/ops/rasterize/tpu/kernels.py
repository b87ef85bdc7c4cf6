"""Front-to-back blending on a TPU: Pallas kernels, forward and backward, one program per tile.

The intersections of all tiles are stored one after the other, in chunks of 128. A program handles one chunk at a
time: Gaussians are the 128 lanes of a vector register, pixels are the sublanes. Transmittance is a running product
along lanes. A TPU has no instruction for it, but its matrix unit sums logarithms: log(1 - alpha) times a triangular
matrix of ones is the log of the transmittance behind every Gaussian, for all pixels at once. The same matrix sums the
remainder in the backward pass (../xla.py has the formula), and gradients are sums over pixels, also matrix products.
The next chunk is copied during the work on the current one. If two tiles share a chunk, the second adds its gradients
to those of the first; the programs of a core run in sequence.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from bags_jax.numerics import EXACT
from bags_jax.ops.limits import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, TILE
from bags_jax.ops.rasterize.tiled import GEOMETRY, geometry_gradients

PIXELS = TILE * TILE
LANES = 128  # intersections of a chunk
SUBLANES = 8
FEATURES = 8  # first row of the features of a chunk, after GEOMETRY rows and two unused ones
BUFFERS = 4  # chunks in fast memory: the first chunks of this tile and the next, and two that follow

LIGHT = pltpu.VMEM((PIXELS, LANES), jnp.float32)  # one number per pixel of a tile, repeated in every lane

_row = functools.partial(jax.lax.broadcasted_iota, jnp.int32)


class Inbox(NamedTuple):
    """Chunks of intersections in fast memory, and copies to it."""

    chunks: Any  # BUFFERS chunks
    arrived: Any  # one semaphore per chunk

    @classmethod
    def shapes(cls, rows: int) -> "Inbox":
        return cls(pltpu.VMEM((BUFFERS, rows, LANES), jnp.float32), pltpu.SemaphoreType.DMA((BUFFERS,)))

    def copy(self, rows, number, buffer):
        """Returns the copy of a chunk into a buffer; the caller starts it and waits for it."""
        return pltpu.make_async_copy(_chunk(rows, number), self.chunks.at[buffer], self.arrived.at[buffer])


class Outbox(NamedTuple):
    """Two chunks of gradients and their copies from fast memory, by the parity of the chunk number."""

    sums: Any
    sent: Any  # one semaphore per chunk
    held: Any  # numbers of the chunks; -1: none

    @classmethod
    def shapes(cls, rows: int) -> "Outbox":
        sums = pltpu.VMEM((2, rows, LANES), jnp.float32)
        return cls(sums, pltpu.SemaphoreType.DMA((2,)), pltpu.SMEM((2,), jnp.int32))

    def clear(self):
        self.held[0], self.held[1] = -1, -1

    def add(self, gradient, number, new):
        """Adds to a chunk and copies it out. Sums of an earlier tile in the same chunk are kept and copied again."""
        parity = _rem(number, 2)
        last = self.held[parity]
        pl.when(last >= 0)(self._copy(gradient, last).wait)
        self.sums[parity] = jnp.where(last == number, self.sums[parity], 0.0) + new
        self.held[parity] = number
        self._copy(gradient, number).start()

    def close(self, gradient):
        """Waits for all copies."""
        for number in (self.held[0], self.held[1]):
            pl.when(number >= 0)(self._copy(gradient, number).wait)

    def _copy(self, gradient, number):
        parity = _rem(number, 2)
        return pltpu.make_async_copy(self.sums.at[parity], _chunk(gradient, number), self.sent.at[parity])


def _chunk(array, number):
    return array.at[:, pl.ds(pl.multiple_of(number * LANES, LANES), LANES)]


def _dot(a, b, contract: tuple[int, int], precision: jax.lax.Precision = EXACT):
    """Multiplies matrices over one axis of each, in float32, not in jax.default_matmul_precision."""
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _div(a, b: int):
    return jax.lax.div(a, jnp.int32(b))  # not //, which asks JAX for its TPU


def _rem(a, b: int):
    return jax.lax.rem(a, jnp.int32(b))


def _running_sum(x: Float[Array, "P 128"]):
    """Cumulative sums along lanes: x in three bf16 parts times a triangle of ones, which bf16 holds exactly."""
    shape = (LANES, LANES)
    triangle = (_row(shape, 0) <= _row(shape, 1)).astype(jnp.bfloat16)
    total, rest = jnp.zeros_like(x), x
    for _ in range(3):
        part = rest.astype(jnp.bfloat16)
        rest = rest - part.astype(jnp.float32)
        total += _dot(part, triangle, (1, 0), jax.lax.Precision.DEFAULT)
    return total


def _last(x: Float[Array, "P 128"]):
    """Repeats the last lane in every lane."""
    return jnp.broadcast_to(x[:, LANES - 1 :], x.shape)


def _falloff(chunk: Float[Array, "8 128"], live: Bool[Array, "1 128"]):
    """Returns the clamped alpha of every pixel and Gaussian, and alpha before the clamp (0 where it is skipped)."""
    x, y, xx, xy, yy, opacity = (chunk[k : k + 1] for k in range(GEOMETRY))
    side = _row((TILE, LANES), 0).astype(jnp.float32) + (0.5 - TILE / 2)
    dx, dy = x - side, y - side
    of_x, of_y, mixed = 0.5 * xx * dx * dx, 0.5 * yy * dy * dy, xy * dy
    sigma = (of_x[None] + of_y[:, None] + mixed[:, None] * dx[None]).reshape(PIXELS, LANES)
    raw = jnp.where(live, opacity, 0.0) * jnp.exp(-sigma)
    raw = jnp.where((raw >= MIN_ALPHA) & (sigma >= 0.0), raw, 0.0)
    return jnp.minimum(raw, MAX_ALPHA), raw


def _absorb(alpha, log_light):
    """Returns transmittance before each Gaussian, weights, and the log of the transmittance behind the chunk.

    Transmittance only decreases: where it is too small behind one Gaussian, it is too small behind all that follow.
    """
    absorbed = jnp.log(1.0 - alpha)
    log_behind = log_light + _running_sum(absorbed)
    before = jnp.exp(log_behind - absorbed)
    goes_on = before * (1.0 - alpha) > MIN_TRANSMITTANCE
    return before, jnp.where(goes_on, alpha * before, 0.0), _last(log_behind)


def _for_chunks(starts, all_rows, inbox: Inbox, log_light, columns: int, work):
    """Calls work(number, geometry about the tile centre, features, lanes of this tile) per chunk until it is opaque."""
    tile, last_tile = pl.program_id(0), pl.num_programs(0) - 1
    begin, end = starts[tile], starts[tile + 1]
    first = _div(begin, LANES)
    stop = jnp.where(begin < end, _div(end + (LANES - 1), LANES), first)
    center = [part * TILE + TILE // 2 for part in (_rem(tile, columns), _div(tile, columns))]

    copy = functools.partial(inbox.copy, all_rows)

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
        copy(number, buffer_of(number)).wait()  # already started, but not needed


def forward_kernel(starts, rows, image, inbox: Inbox, log_light, *, columns: int):
    """Blends one tile."""
    image[...] = jnp.zeros_like(image)

    def work(_, geometry, features, live):
        alpha, _ = _falloff(geometry, live)
        _, weight, log_light[...] = _absorb(alpha, log_light[...])
        image[0] += _dot(jnp.where(live, features, 0.0), weight, (1, 1))

    _for_chunks(starts, rows, inbox, log_light, columns, work)


def backward_kernel(
    starts, rows, image, cotangent, _, gradient, inbox: Inbox, log_light, outbox: Outbox, to_come, *, columns: int
):
    """Adds the gradients of one tile to its intersections."""
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

    _for_chunks(starts, rows, inbox, log_light, columns, work)

    @pl.when(tile == pl.num_programs(0) - 1)
    def _():
        outbox.close(gradient)
