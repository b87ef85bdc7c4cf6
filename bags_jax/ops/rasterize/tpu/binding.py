"""Blending on a TPU as a pure, differentiable function: how kernels.py is called, and where it can be."""

import concurrent.futures
import contextlib
import functools
import math
import warnings
from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from bags_jax.errors import UserError
from bags_jax.ops.rasterize.tiled import GEOMETRY, rasterize_by
from bags_jax.ops.rasterize.tiles import count_intersections, grid_size
from bags_jax.ops.rasterize.tpu.kernels import (
    FEATURES,
    LANES,
    LIGHT,
    PIXELS,
    SUBLANES,
    TILE,
    Inbox,
    Outbox,
    backward_kernel,
    forward_kernel,
)
from bags_jax.platforms import current_platform
from bags_jax.structs import Projected, RasterOutput

MOST_TILES = 250_000  # whose starts fit into a core's memory of scalars, 1 MB


def _of_tile(channels: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, channels, PIXELS), lambda tile, _: (tile, 0, 0))


_ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)
_IN_ORDER = pltpu.CompilerParams(dimension_semantics=("arbitrary",))  # tiles share chunks: they cannot run side by side


def _call(kernel, starts, inputs, columns: int, *, in_specs, out_specs, out_shape, scratch=(), aliases=None):
    """A program for each tile."""
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(starts.shape[0] - 1,),
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=[Inbox.shapes(inputs[0].shape[0]), LIGHT, *scratch],
    )
    call = pl.pallas_call(
        functools.partial(kernel, columns=columns),
        grid_spec=grid_spec,
        out_shape=out_shape,
        input_output_aliases=aliases or {},
        compiler_params=_IN_ORDER,
        interpret=pltpu.InterpretParams(detect_races=True) if _interpreted else False,
    )
    return call(starts, *inputs)


def _forward(starts: Int[Array, "S"], pairs: Float[Array, "A M"], columns: int) -> Float[Array, "T E 256"]:
    """Sums of weight times feature of each tile, of pairs as `_lay_out` has them."""
    channels = pairs.shape[0] - FEATURES
    return _call(
        forward_kernel,
        starts,
        [pairs],
        columns,
        in_specs=[_ANYWHERE],
        out_specs=_of_tile(channels),
        out_shape=jax.ShapeDtypeStruct((starts.shape[0] - 1, channels, PIXELS), jnp.float32),
    )


def _backward(
    starts: Int[Array, "S"],
    pairs: Float[Array, "A M"],
    blended: Float[Array, "T E 256"],
    cotangent: Float[Array, "T E 256"],
    columns: int,
) -> Float[Array, "A M"]:
    """The gradient of `pairs`."""
    rows = pairs.shape[0]
    of_tile = _of_tile(rows - FEATURES)
    gradient = jnp.zeros_like(pairs)  # tiles that are opaque early leave chunks as they are
    return _call(
        backward_kernel,
        starts,
        [pairs, blended, cotangent, gradient],
        columns,
        in_specs=[_ANYWHERE, of_tile, of_tile, _ANYWHERE],
        out_specs=_ANYWHERE,
        out_shape=jax.ShapeDtypeStruct(pairs.shape, jnp.float32),
        scratch=[Outbox.shapes(rows), LIGHT],
        aliases={4: 0},
    )


def _fill(x: Float[Array, "R M"], rows: int) -> Float[Array, "R2 M"]:
    return jnp.pad(x, ((0, rows - x.shape[0]), (0, 0)))


def _lay_out(attributes: Float[Array, "N A"], ids: Int[Array, "M"]) -> tuple[Float[Array, "A2 M2"], Int[Array, "M2"]]:
    """Attributes of all pairs as chunks have them, with a chunk more than there are pairs for; and whose they are."""
    ids = jnp.pad(ids, (0, LANES - ids.shape[0] % LANES))
    pairs = attributes.T[:, ids]
    features = pairs.shape[0] - GEOMETRY
    of_features = _fill(pairs[GEOMETRY:], -(-features // SUBLANES) * SUBLANES)
    return jnp.concatenate([_fill(pairs[:GEOMETRY], FEATURES), of_features]), ids


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def blend(
    attributes: Float[Array, "N A"], ids: Int[Array, "M"], starts: Int[Array, "S"], columns: int
) -> Float[Array, "S-1 E 256"]:
    """`blend_xla.blend` for tiles of 16 px, so many `columns` of them in a row. Under vmap one image after the other."""
    return _blend_fwd(attributes, ids, starts, columns)[0]


def _blend_fwd(attributes, ids, starts, columns):
    @sequential_vmap
    def run(attributes, ids, starts):
        return _forward(starts, _lay_out(attributes, ids)[0], columns)

    blended = run(attributes, ids, starts)
    return blended[:, : attributes.shape[1] - GEOMETRY], (attributes, ids, starts, blended)


def _blend_bwd(columns, residuals, cotangent):
    @sequential_vmap
    def run(attributes, ids, starts, blended, cotangent):
        pairs, ids = _lay_out(attributes, ids)
        padding = blended.shape[1] - cotangent.shape[1]
        of_pairs = _backward(starts, pairs, blended, jnp.pad(cotangent, ((0, 0), (0, padding), (0, 0))), columns)
        features = of_pairs[FEATURES : FEATURES + attributes.shape[1] - GEOMETRY]
        rows = jnp.concatenate([of_pairs[:GEOMETRY], features])
        return jnp.zeros_like(attributes.T).at[:, ids].add(rows).T

    return run(*residuals, cotangent), None, None


blend.defvjp(_blend_fwd, _blend_bwd)


def rasterize_tpu(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int,
    max_intersections: int,
) -> RasterOutput:
    """`rasterize` on a TPU, by tiles of 16 x 16 px whatever is asked for. At least one Gaussian, and room for at least one pair.

    Raises:
      UserError: more tiles than the kernels can keep in mind.
    """
    del tile_size
    columns, rows = grid_size(width, height, TILE)
    if columns * rows > MOST_TILES:
        raise UserError(
            f"{width} x {height} px came, expected at most {MOST_TILES} tiles of {TILE} x {TILE} px, as a TPU can keep the starts of:"
            " render parts of it, or pass backend='xla'"
        )
    by_tile = functools.partial(blend, columns=columns)
    size = {"width": width, "height": height, "tile_size": TILE}
    return rasterize_by(by_tile, projected, features, **size, max_intersections=max_intersections)


def count_tpu(projected: Projected, *, width: int, height: int, tile_size: int) -> Int[Array, ""]:
    """Number of pairs that `rasterize_tpu` makes of an image."""
    del tile_size
    return count_intersections(projected, width=width, height=height, tile_size=TILE)


_interpreted: list[bool] = []


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Within this, kernels are traced to be interpreted on a CPU, with their copies and their races: for tests."""
    _interpreted.append(True)
    try:
        yield
    finally:
        _interpreted.pop()


def is_available() -> bool:
    """Whether the kernels run here. Says once why not, where there is a TPU."""
    return bool(_interpreted) or (current_platform() == "tpu" and _runs())


def require() -> None:
    """Raises unless the kernels run here.

    Raises:
      UserError: no TPU, or one that they do not run on.
    """
    if not is_available():
        raise UserError(
            f"backend='tpu' came, but JAX runs on {current_platform()}, or its kernels do not run there: it needs a TPU and "
            "pip install '.[tpu]' in the checkout; backend='auto' takes what there is"
        )


@functools.cache
def _runs() -> bool:
    """Whether a Gaussian is blended as it should. In a thread of its own: in this one, a program may just be traced.

    Raises:
      RuntimeError: the TPU's memory is full, which says nothing of the kernels: the next call tries again.
    """
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(_probe, jax.config.jax_default_device).result()  # type: ignore[reportAttributeAccessIssue]
    except Exception as error:  # a compiler may answer anything
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        warnings.warn(f"bags_jax: no TPU kernels here, the rasterizer is slower in pure XLA: {error}", stacklevel=2)
        return False
    return True


def _probe(device) -> None:
    """Raises where the kernels do not run, or give something else half a pixel from the middle of a Gaussian."""
    with jax.default_device(device):
        attributes, starts = jnp.array([[0.0, 0.5, 1.0, 0.0, 1.0, 0.5, 1.0]]), jnp.array([0, 1], jnp.int32)
        middle = lambda x: cast(Array, blend(x, jnp.zeros(1, jnp.int32), starts, 1))[0, 0, 0]
        value, gradient = jax.value_and_grad(middle)(attributes)
        found = float(value), float(gradient[0, 5])  # the slope by the opacity is the falloff
    falloff = math.exp(-0.5 * 0.5**2)
    if abs(found[0] - 0.5 * falloff) > 1e-4 or abs(found[1] - falloff) > 1e-4:
        raise RuntimeError(f"kernels ran and gave {found}, expected {(0.5 * falloff, falloff)}")
