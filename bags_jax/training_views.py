"""Training views as training saw them last: the photograph, the sharp picture, the blurred one, and the blur between the two."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, UInt8

from bags_jax import plan
from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.blur_model.statistics import mean_over, pixel_statistics, shares, view_statistics
from bags_jax.data.pyramid import make_dataset
from bags_jax.ops.blur.kernels import kernel_side, kernels_at
from bags_jax.rendering import Rendered, apply_blur, propose_blur
from bags_jax.run import Run, refined_viewmats, render_views
from bags_jax.schedule import Stage
from bags_jax.step import network_name
from bags_jax.structs import BlurField

KERNEL_GRID = (6, 9)  # kernels shown of a view, rows and columns


@struct.dataclass
class FoundBlur:
    """The blur of one training view."""

    mask: Float[Array, "h w"]
    mean_mask: Float[Array, ""]
    rms_width: Float[Array, ""]  # mean over pixels, px at full image scale
    direction: Float[Array, ""]  # of the view's mean kernel, degrees
    samples: Float[Array, "gh gw K K"]  # kernels of a regular grid of pixels


@dataclasses.dataclass(frozen=True)
class Look:
    """One training view as the scene and the blur model have it, at the image scale that was trained last."""

    photo: UInt8[np.ndarray, "H W 3"]
    sharp: Float[Array, "H W 3"]
    blurred: Float[Array, "H W 3"]  # what the photograph should look like; without a blur model the sharp picture
    blur: FoundBlur | None


def look_at_training_views(run: Run) -> Iterator[Look]:
    """Every training view, one at a time, as training saw it last.

    At the image scale of its stage, and smaller photographs on the canvas of the largest: there the network knows its way.
    """
    scene, network, stage = run.scene, run.network, run.stage
    photos = make_dataset(scene, stage.scale)
    _, height, width, _ = photos.images.shape
    margin = plan.margin_of(run.job.config, stage)
    viewmats = refined_viewmats(run)[scene.train_ids]
    canvases = render_views(run, viewmats, photos.cameras.K, width=width, height=height, margin=margin)
    for index, (canvas, size) in enumerate(zip(canvases, np.asarray(photos.sizes), strict=True)):
        rows, columns = map(slice, size)
        photo = np.asarray(photos.images[index, rows, columns])
        if network is None:
            picture = canvas.inside().image[rows, columns]
            yield Look(photo, picture, picture, None)
            continue
        params = run.state.network[network_name(stage.network)]
        picture, blurred, blur = _look(params, jnp.int32(index), jnp.array(size), canvas, network=network, stage=stage)
        blocks = [slice(-(-side // network.stride(stage.head))) for side in size]
        blur = dataclasses.replace(blur, mask=blur.mask[*blocks])
        yield Look(photo, picture[rows, columns], blurred[rows, columns], blur)


@functools.partial(jax.jit, static_argnames=("network", "stage"))
def _look(params, index, size, rendered: Rendered, *, network: BlurProposalNetwork, stage: Stage):
    """Sharp picture, blurred picture and the blur of a canvas whose first size[0] rows and size[1] columns are the photograph."""
    field = propose_blur(network, params, index, rendered, head=stage.head)
    blurred, moments = apply_blur(network, field, rendered, head=stage.head)
    rows, columns = (jnp.arange(n) < size[axis] for axis, n in enumerate(blurred.shape[:2]))
    stride = network.stride(stage.head)
    share = shares(rows[:, None] & columns[None, :], stride)
    found = FoundBlur(
        mask=field.mask,
        mean_mask=mean_over(field.mask, share),
        rms_width=mean_over(pixel_statistics(moments).rms_width, share) / stage.scale,
        direction=view_statistics(moments, share).direction,
        samples=sample_kernels(field, size / stride),
    )
    return rendered.inside().image, blurred, found


def sample_kernels(field: BlurField, size: Float[Array, "2"]) -> Float[Array, "gh gw K K"]:
    """Kernels of a regular grid over the first size[0] rows and size[1] columns of a field, the only ones that are made."""
    places = [((jnp.arange(n) + 0.5) / n * size[axis]).astype(jnp.int32) for axis, n in enumerate(KERNEL_GRID)]
    picked = kernels_at(field, *jnp.meshgrid(*places, indexing="ij"))
    side = kernel_side(picked.shape[-1])
    return picked.reshape(*KERNEL_GRID, side, side)
