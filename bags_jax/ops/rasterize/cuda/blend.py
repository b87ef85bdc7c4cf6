"""Blends the intersections of C cameras by the kernels of blend.cu, and the gradient."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.ops.limits import TILE
from bags_jax.ops.rasterize.channels import channel_groups, pad_channels
from bags_jax.ops.rasterize.cuda.binning import Intersections, sum_slots
from bags_jax.ops.rasterize.tiles import grid_size
from bags_jax.ops.toolchain.cuda_launch import Kernel, launch

BACKWARD_THREADS, FINISH_THREADS = 64, 256  # threads of a block; blend.cu has the same numbers
GEOMETRY = 6  # values of a Gaussian before its features, and values of its gradient before theirs
LOG2_E = math.log2(math.e)


class Splats(NamedTuple):
    """The differentiable inputs: N Gaussians on the screens of C cameras."""

    means_px: Float[Array, "C N 2"]
    conics: Float[Array, "C N 3"]
    opacities: Float[Array, "C N"]
    features: Float[Array, "C N D"]


class Image(NamedTuple):
    """Blended features and opacity, or the cotangents of both."""

    colors: Float[Array, "C H W D"]
    alphas: Float[Array, "C H W"]


def forward_threads(channels: int) -> int:
    """Returns the threads of a block that blends `channels` features; blend.cu has the same numbers."""
    return 128 if channels <= 4 else 64


def _pack(splats: Splats, features: Float[Array, "C N E"]) -> Float[Array, "C N F"]:
    """Packs rows of float4 for the kernels: x, y, terms of the exponent for base 2, opacity, features."""
    terms = splats.conics * jnp.array([-0.5 * LOG2_E, -LOG2_E, -0.5 * LOG2_E], jnp.float32)[None, None]
    rows = jnp.concatenate([splats.means_px, terms, splats.opacities[..., None], features], axis=-1)
    return pad_channels(rows, -(-rows.shape[-1] // 4) * 4)


def _sizes(splats: Splats, intersections: Intersections, width: int, height: int, rows: int) -> Int[Array, "7"]:
    columns, tile_rows = grid_size(width, height, TILE)
    num, capacity = splats.opacities.shape[1], intersections.ids.shape[1]
    return jnp.array([num, capacity, columns, columns * tile_rows, width, height, rows], jnp.int32)


def blend_views(splats: Splats, intersections: Intersections, *, width: int, height: int) -> Image:
    """Blends the Gaussians of each tile front to back (Kerbl et al. 2023, eq. 3)."""
    cameras = splats.opacities.shape[0]
    sizes = _sizes(splats, intersections, width, height, 0)
    grid = (intersections.starts.shape[1] - 1, cameras)
    colors, alphas = [], []
    for first, end, channels in channel_groups(splats.features.shape[-1]):
        rows = _pack(splats, pad_channels(splats.features[..., first:end], channels))
        image = [
            jax.ShapeDtypeStruct((cameras, height, width, channels), jnp.float32),
            jax.ShapeDtypeStruct((cameras, height, width), jnp.float32),
        ]
        kernel = Kernel(f"blend_{channels}", "blend_forward", forward_threads(channels))
        color, alpha = launch(kernel, image, sizes, intersections.starts, intersections.ids, rows, grid=grid)
        colors.append(color[..., : end - first])
        alphas.append(alpha)
    return Image(jnp.concatenate(colors, axis=-1), alphas[0])


def blend_gradient(splats: Splats, intersections: Intersections, image: Image, cotangent: Image) -> Splats:
    """Computes the gradient of `blend_views`, in a fixed order if there are slots, else by atomic additions."""
    total, features = None, []
    for first, end, channels in channel_groups(splats.features.shape[-1]):
        group = splats._replace(features=pad_channels(splats.features[..., first:end], channels))
        # The gradient is a sum over channels, so groups add up. Opacity counts as a channel of the first group.
        of_alphas = cotangent.alphas if first == 0 else jnp.zeros_like(cotangent.alphas)
        colors, of_colors = (pad_channels(x.colors[..., first:end], channels) for x in (image, cotangent))
        sums = _gradient_sums(group, intersections, Image(colors, image.alphas), Image(of_colors, of_alphas))
        gradient = _from_sums(group, sums)
        features.append(gradient.features[..., : end - first])
        geometry = gradient._replace(features=())
        total = geometry if total is None else jax.tree.map(jnp.add, total, geometry)
    assert total is not None
    return total._replace(features=jnp.concatenate(features, axis=-1))


def _gradient_sums(
    splats: Splats, intersections: Intersections, image: Image, cotangent: Image
) -> Float[Array, "C N V"]:
    """Sums, for one group of channels, moments of dL/dsigma about each mean and the gradients of the features."""
    cameras, height, width, channels = image.colors.shape
    by_slot = intersections.slots is not None
    rows = intersections.ids if intersections.slots is None else intersections.slots
    num_rows = intersections.ids.shape[1] if by_slot else splats.opacities.shape[1]
    zeros = jnp.zeros((cameras, num_rows, GEOMETRY + channels), jnp.float32)
    inputs = (
        _sizes(splats, intersections, width, height, num_rows),
        intersections.starts,
        intersections.ids,
        rows,
        _pack(splats, splats.features),
        image.colors,
        image.alphas,
        cotangent.colors,
        cotangent.alphas,
        zeros,
    )
    kernel = Kernel(f"blend_{channels}", "blend_backward", BACKWARD_THREADS)
    output = jax.ShapeDtypeStruct(zeros.shape, zeros.dtype)
    grid = (intersections.starts.shape[1] - 1, cameras)
    (sums,) = launch(kernel, [output], *inputs, grid=grid, aliases={len(inputs) - 1: 0})
    return sum_slots(intersections, sums) if by_slot else sums


def _from_sums(splats: Splats, sums: Float[Array, "C N V"]) -> Splats:
    """Turns the sums of one group of channels into gradients."""
    kernel = Kernel(f"blend_{splats.features.shape[-1]}", "finish_gradient", FINISH_THREADS)
    outputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), splats)
    num = splats.opacities.size
    operands = jnp.array([num], jnp.int32), splats.conics, splats.opacities, sums
    return Splats(*launch(kernel, outputs, *operands, grid=(-(-num // FINISH_THREADS), 1)))
