"""Renders training views at the image scale of the last training stage: sharp, blurred, and the estimated blur."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, UInt8

from bags_jax.blur_model.protocol import BlurModel
from bags_jax.blur_model.statistics import (
    kernel_statistics,
    mean_over,
    pixel_statistics,
    share_from_elsewhere,
    shares,
    view_statistics,
    whole_kernels,
)
from bags_jax.data.pyramid import photograph_at, training_intrinsics, training_sizes
from bags_jax.ops.blur.kernels import kernel_side, kernels_at
from bags_jax.rendering import Rendered, apply_blur, propose_blur
from bags_jax.run import Run, refined_viewmats, render_views
from bags_jax.scene.exposure import expose
from bags_jax.schedule import Stage
from bags_jax.structs import BlurField, network_name

MAX_SAMPLES = 486  # kernels sampled from one view: 18 x 27 of a photograph of 3 : 2
MAX_SAMPLED_TAPS = 150_000  # large kernels are sampled on a coarser grid: the report embeds all of them


@struct.dataclass
class KernelSamples:
    """The kernels of one view at a regular grid of pixels, and their figures in px at full image scale."""

    kernels: Float[Array, "gh gw K K"]  # whole: with the share of the light that stays at its pixel
    masks: Float[Array, "gh gw"]  # share of the light that comes from other pixels
    widths: Float[Array, "gh gw"]  # RMS
    directions: Float[Array, "gh gw"]  # degrees


@struct.dataclass
class EstimatedBlur:
    """The blur of one training view, as the blur model estimates it."""

    mask: Float[Array, "h w"]  # share of the light of each pixel that comes from other pixels; 0: sharp
    widths: Float[Array, "h w"]  # RMS width of the whole kernels, px at full image scale
    mean_mask: Float[Array, ""]
    rms_width: Float[Array, ""]  # mean over pixels, px at full image scale
    direction: Float[Array, ""]  # of the view's mean kernel, degrees
    samples: KernelSamples


@dataclasses.dataclass(frozen=True)
class TrainingView:
    """One training view at the image scale of the last training stage."""

    photo: UInt8[np.ndarray, "H W 3"]
    sharp: Float[Array, "H W 3"]  # the render, with the exposure of the photograph
    blurred: Float[Array, "H W 3"]  # the model of the photograph; equals `sharp` without a blur model
    blur: EstimatedBlur | None  # None: no blur model
    valid: Bool[np.ndarray, "H W"] | None  # pixels of the photograph to use; None: all


def render_training_views(run: Run, indices: Sequence[int] | None = None) -> Iterator[TrainingView]:
    """Renders training views, one at a time, with their refined poses; `indices` among them, None: all.

    Each has the exposure that training found for its photograph. Uses the image scale of the run's stage, and pads smaller photographs to the size of the largest one: the network
    was trained at that scale and size.
    """
    scene, model, stage = run.scene, run.model, run.stage
    sizes = training_sizes(scene, stage.scale)
    height, width = sizes.max(axis=0).tolist()
    indices = range(len(scene.train_ids)) if indices is None else indices
    chosen = np.asarray(indices, int)
    viewmats, Ks = refined_viewmats(run)[scene.train_ids[chosen]], training_intrinsics(scene, stage.scale)[chosen]
    canvases = render_views(run, viewmats, Ks, width=width, height=height, margin=stage.margin)
    for index, canvas in zip(indices, canvases, strict=True):
        size = sizes[index]
        rows, columns = map(slice, size)
        photo, valid = photograph_at(scene, scene.train_ids[index], stage.scale)
        if model is None:
            picture = expose(canvas.crop_margin().image[rows, columns], run.state.exposures[index])
            yield TrainingView(photo, picture, picture, None, valid)
            continue
        params = run.state.network[network_name(stage.network)]
        picture, blurred, blur = _apply_blur(
            params, jnp.int32(index), jnp.array(size), canvas, model=model, stage=stage
        )
        blocks = [slice(-(-side // stage.stride)) for side in size]
        picture, blurred = (expose(x, run.state.exposures[index]) for x in (picture, blurred))
        blur = dataclasses.replace(blur, mask=blur.mask[*blocks], widths=blur.widths[*blocks])
        yield TrainingView(photo, picture[rows, columns], blurred[rows, columns], blur, valid)


@functools.partial(jax.jit, static_argnames=("model", "stage"))
def _apply_blur(params, index, size, rendered: Rendered, *, model: BlurModel, stage: Stage):
    """Returns (sharp, blurred, EstimatedBlur). The photograph covers the first `size` rows and columns."""
    field = propose_blur(model, params, index, rendered, stage=stage)
    blurred, moments = apply_blur(field, rendered, stage=stage)
    rows, columns = (jnp.arange(n) < size[axis] for axis, n in enumerate(blurred.shape[:2]))
    stride = stage.stride
    share = shares(rows[:, None] & columns[None, :], stride)
    widths, mask = pixel_statistics(moments).rms_width, share_from_elsewhere(field)
    estimated = EstimatedBlur(
        mask=mask,
        widths=widths / stage.scale,
        mean_mask=mean_over(mask, share),
        rms_width=mean_over(widths, share) / stage.scale,
        direction=view_statistics(moments, share).direction,
        samples=sample_kernels(field, size / stride, scale=stage.scale),
    )
    return rendered.crop_margin().image, blurred, estimated


def sample_kernels(field: BlurField, size: Float[Array, "2"], *, scale: float) -> KernelSamples:
    """Computes the kernels at a regular grid over the first `size` rows and columns of a field, and no others."""
    side = kernel_side(field.bias.shape[-1])
    grid = choose_grid(*field.mask.shape, side=side)
    places = [((jnp.arange(n) + 0.5) / n * size[axis]).astype(jnp.int32) for axis, n in enumerate(grid)]
    rows, columns = jnp.meshgrid(*places, indexing="ij")
    picked = whole_kernels(kernels_at(field, rows, columns), field.mask[rows, columns])
    statistics = kernel_statistics(picked)
    return KernelSamples(
        kernels=picked.reshape(*grid, side, side),
        masks=1.0 - picked[..., picked.shape[-1] // 2],
        widths=statistics.rms_width / scale,
        directions=statistics.direction,
    )


def choose_grid(height: int, width: int, *, side: int) -> tuple[int, int]:
    """Chooses rows and columns of the sampled kernels: nearly square cells, and no more kernels than blocks."""
    count = min(MAX_SAMPLES, MAX_SAMPLED_TAPS // side**2)
    rows = min(height, max(1, round(math.sqrt(count * height / width))))
    return rows, min(width, max(1, count // rows))
