"""The Pallas rasterizer for TPUs as pure, differentiable functions, and the test whether it runs here."""

import concurrent.futures
import contextlib
import functools
import math
from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from bags_jax.errors import UserError
from bags_jax.ops.limits import TILE
from bags_jax.ops.rasterize import tiles
from bags_jax.ops.rasterize.tiled import GEOMETRY, rasterize_by
from bags_jax.ops.rasterize.tiles import check_tile_size, grid_size
from bags_jax.ops.rasterize.tpu.kernels import (
    FEATURES,
    LANES,
    LIGHT,
    PIXELS,
    SUBLANES,
    Inbox,
    Outbox,
    backward_kernel,
    forward_kernel,
)
from bags_jax.platforms import current_platform
from bags_jax.structs import Projected, RasterOutput

MAX_TILES = 250_000  # their starts fit into the scalar memory of a core, 1 MB


def _of_tile(channels: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, channels, PIXELS), lambda tile, _: (tile, 0, 0))


_ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)
_IN_ORDER = pltpu.CompilerParams(dimension_semantics=("arbitrary",))  # tiles share chunks: they must run in sequence


def _call(kernel, starts, inputs, columns: int, *, in_specs, out_specs, out_shape, scratch=(), aliases=None):
    """Runs one program per tile."""
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


def _forward(starts: Int[Array, "S"], rows: Float[Array, "A M"], columns: int) -> Float[Array, "T E 256"]:
    """Sums weight times feature per tile over intersections in the layout of `_lay_out`."""
    channels = rows.shape[0] - FEATURES
    return _call(
        forward_kernel,
        starts,
        [rows],
        columns,
        in_specs=[_ANYWHERE],
        out_specs=_of_tile(channels),
        out_shape=jax.ShapeDtypeStruct((starts.shape[0] - 1, channels, PIXELS), jnp.float32),
    )


def _backward(
    starts: Int[Array, "S"],
    rows: Float[Array, "A M"],
    blended: Float[Array, "T E 256"],
    cotangent: Float[Array, "T E 256"],
    columns: int,
) -> Float[Array, "A M"]:
    """Computes the gradient of `rows`."""
    of_tile = _of_tile(rows.shape[0] - FEATURES)
    gradient = jnp.zeros_like(rows)  # tiles that become opaque early write no gradient of their last chunks
    return _call(
        backward_kernel,
        starts,
        [rows, blended, cotangent, gradient],
        columns,
        in_specs=[_ANYWHERE, of_tile, of_tile, _ANYWHERE],
        out_specs=_ANYWHERE,
        out_shape=jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        scratch=[Outbox.shapes(rows.shape[0]), LIGHT],
        aliases={4: 0},
    )


def _fill(x: Float[Array, "R M"], rows: int) -> Float[Array, "R2 M"]:
    return jnp.pad(x, ((0, rows - x.shape[0]), (0, 0)))


def _lay_out(attributes: Float[Array, "N A"], ids: Int[Array, "M"]) -> tuple[Float[Array, "A2 M2"], Int[Array, "M2"]]:
    """Gathers attributes of intersections, padded to whole chunks and one more. Returns attributes and padded ids."""
    ids = jnp.pad(ids, (0, LANES - ids.shape[0] % LANES))
    gathered = attributes.T[:, ids]
    features = gathered.shape[0] - GEOMETRY
    of_features = _fill(gathered[GEOMETRY:], -(-features // SUBLANES) * SUBLANES)
    return jnp.concatenate([_fill(gathered[:GEOMETRY], FEATURES), of_features]), ids


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def blend(
    attributes: Float[Array, "N A"], ids: Int[Array, "M"], starts: Int[Array, "S"], columns: int
) -> Float[Array, "S-1 E 256"]:
    """Does what xla.blend does, for tiles of 16 px in rows of `columns` tiles. Under vmap one image after the other."""
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
        inputs, ids = _lay_out(attributes, ids)
        padding = blended.shape[1] - cotangent.shape[1]
        gradient = _backward(starts, inputs, blended, jnp.pad(cotangent, ((0, 0), (0, padding), (0, 0))), columns)
        features = gradient[FEATURES : FEATURES + attributes.shape[1] - GEOMETRY]
        rows = jnp.concatenate([gradient[:GEOMETRY], features])
        return jnp.zeros_like(attributes.T).at[:, ids].add(rows).T

    return run(*residuals, cotangent), None, None


blend.defvjp(_blend_fwd, _blend_bwd)


def rasterize(
    projected: Projected,
    features: Float[Array, "N D"],
    *,
    width: int,
    height: int,
    tile_size: int = TILE,
    max_intersections: int,
) -> RasterOutput:
    """Rasterizes at least one Gaussian on a TPU, with a buffer for at least one intersection.

    Raises:
      UserError: a tile size other than 16 px, or more tiles than the scalar memory of a core holds.
    """
    check_tile_size(tile_size, "tpu")
    columns, rows = grid_size(width, height, TILE)
    if columns * rows > MAX_TILES:
        raise UserError(
            f"{width} x {height} px came, expected at most {MAX_TILES} tiles of {TILE} x {TILE} px on a TPU: "
            "render parts of the image, or pass backend='xla'"
        )
    by_tile = functools.partial(blend, columns=columns)
    size = {"width": width, "height": height, "tile_size": TILE}
    return rasterize_by(by_tile, projected, features, **size, max_intersections=max_intersections)


def count_intersections(projected: Projected, *, width: int, height: int, tile_size: int = TILE) -> Int[Array, ""]:
    """Counts the intersections that `rasterize` makes, up to 2^31 - 1."""
    check_tile_size(tile_size, "tpu")
    return tiles.count_intersections(projected, width=width, height=height, tile_size=tile_size)


_interpreted: list[bool] = []


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Within this context, kernels are traced to be interpreted on a CPU, with copies and race detection. For tests."""
    _interpreted.append(True)
    try:
        yield
    finally:
        _interpreted.pop()


def find_problem() -> str:
    """Returns why the kernels do not run on this machine, or ""."""
    if _interpreted:
        return ""
    if current_platform() != "tpu":
        return f"JAX runs on {current_platform()}: it needs a TPU and pip install 'jax[tpu]'"
    return _try()


@functools.cache
def _try() -> str:
    """Blends one Gaussian and returns the problem, or "". In a thread of its own: this one may be tracing a program.

    Raises:
      RuntimeError: the memory of the TPU is full. The kernels are not tested then; the next call tries again.
    """
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(_probe, jax.config.jax_default_device).result()  # type: ignore[reportAttributeAccessIssue]
    except Exception as error:  # a compiler may raise anything
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        return str(error) or type(error).__name__
    return ""


def _probe(device) -> None:
    """Raises if the kernels do not run, or if value or gradient half a pixel from the centre of a Gaussian is wrong."""
    with jax.default_device(device):
        attributes, starts = jnp.array([[0.0, 0.5, 1.0, 0.0, 1.0, 0.5, 1.0]]), jnp.array([0, 1], jnp.int32)
        middle = lambda x: cast(Array, blend(x, jnp.zeros(1, jnp.int32), starts, 1))[0, 0, 0]
        value, gradient = jax.value_and_grad(middle)(attributes)
        found = float(value), float(gradient[0, 5])  # d value / d opacity is the falloff
    falloff = math.exp(-0.5 * 0.5**2)
    if abs(found[0] - 0.5 * falloff) > 1e-4 or abs(found[1] - falloff) > 1e-4:
        raise RuntimeError(f"kernels ran and returned {found}, expected {(0.5 * falloff, falloff)}")
