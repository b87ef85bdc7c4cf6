"""Terms of the training loss, and their sum. All terms are means, so that they do not depend on the image size.

A new term is one line in `photo_terms` or `blur_terms`, and one weight of the same name in settings.Loss
(docs/extending_loss_term.md).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bags_jax.blur_model.statistics import masked_widths, mean_blur
from bags_jax.errors import UserError
from bags_jax.ops.ssim import ssim
from bags_jax.rendering import Rendered, normalize_depth
from bags_jax.scene.confidence import blur_penalty, looks_sharp, sharp_views
from bags_jax.schedule import Stage
from bags_jax.settings import STEPS, Loss, rule_of
from bags_jax.structs import BlurMoments


def photo_terms(
    image: Float[Array, "H W 3"],
    photo: Float[Array, "H W 3"],
    valid: Bool[Array, "H W"],
    sharp: Rendered,
    *,
    loss: Loss,
    backend: str = "auto",
) -> dict[str, Float[Array, ""]]:
    """Terms that need no blur model, by name.

    Args:
      image: predicted photograph, sRGB.
      photo: the photograph, sRGB in [0, 1].
      valid: pixels of the photograph; the others are padding.
      sharp: sharp render without its margin.
      loss: weights; the variations of the render are computed only where they have a weight.
      backend: of ops.ssim.
    """
    terms = {"l1": l1(image, photo, valid), "dssim": 1.0 - ssim(image, photo, valid, backend=backend)}
    if loss.depth_tv:
        terms["depth_tv"] = total_variation(normalize_depth(sharp.depth)[..., None], valid)
    if loss.rgb_tv:
        terms["rgb_tv"] = total_variation(sharp.image, valid)
    if loss.depth_tv_squared:
        terms["depth_tv_squared"] = squared_variation(normalize_depth(sharp.depth)[..., None], valid)
    if loss.rgb_tv_squared:
        terms["rgb_tv_squared"] = squared_variation(sharp.image, valid)
    return terms


def blur_terms(
    moments: BlurMoments,
    share: Float[Array, "h w"],
    blur_px: Float[Array, "V"],
    index: Int[Array, ""],
    step: Int[Array, ""],
    *,
    stage: Stage,
    loss: Loss,
) -> dict[str, Float[Array, ""]]:
    """Terms of the blur model, by name.

    Args:
      moments: blur of one view.
      share: weight of each block in a mean over the photograph (blur_model.statistics.shares).
      blur_px: blur of all views at their last steps, px at full scale.
      index: the view.
      step: step of training, at which sharp views may be penalised.
      stage: image scale and stride.
      loss: the steps from which sharp views are penalised.
    """
    blur, widths = mean_blur(moments, share), masked_widths(moments)
    penalised = looks_sharp(blur_px) & (step >= loss.sharp_start)
    penalised |= sharp_views(blur_px)[index] & (step >= loss.sharp_view_start)
    variance = blur.squared_width / stage.scale**2
    return {
        "mask": blur.mask,
        "centroid": blur.squared_centroid,
        "width_tv": total_variation(widths[..., None], share > 0.0) / stage.stride,
        "sharp": jnp.where(penalised, blur_penalty(variance, blur_px), 0.0),
    }


def clip_white(image: Float[Array, "H W D"], photo: Float[Array, "H W D"]) -> Float[Array, "H W D"]:
    """Clips a predicted photograph at white where the photograph is white: there, any more light looks the same.

    Elsewhere values above white stay, because clipping them would leave no gradient to darken them.
    """
    return jnp.where(photo >= 1.0, jnp.minimum(image, 1.0), image)


def weighted_sum(terms: dict[str, Float[Array, ""]], loss: Loss) -> Float[Array, ""]:
    """Sum of all terms, each times the weight of its name; `ssim` is shared out between L1 and 1 - SSIM."""
    weights = {**vars(loss), "l1": 1.0 - loss.ssim, "dssim": loss.ssim}
    names = {"l1", "dssim"} | {field.name for field in dataclasses.fields(Loss) if rule_of(field).unit != STEPS}
    for name, term in terms.items():
        if name not in names:
            raise UserError(f"the loss term {name!r} has no weight: add a setting of this name to settings.Loss")
        if jnp.shape(term):
            raise UserError(
                f"the loss term {name!r} has shape {jnp.shape(term)}, expected (): take its mean over the pixels"
            )
    return jnp.asarray(sum(weights[name] * term for name, term in terms.items() if weights[name]))


def _masked_mean(values: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    total = jnp.sum(jnp.where(valid[..., None], values, 0.0))
    return total / (jnp.maximum(jnp.sum(valid), 1) * values.shape[-1])


def l1(image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean absolute difference over valid pixels."""
    return _masked_mean(jnp.abs(image - target), valid)


def mse(image: Float[Array, "H W D"], target: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean squared difference over valid pixels."""
    return _masked_mean((image - target) ** 2, valid)


def psnr_from_mse(error: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Peak signal-to-noise ratio of images in [0, 1], dB."""
    return -10.0 / np.log(10.0) * jnp.log(jnp.maximum(error, 1e-12))


def total_variation(image: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Mean absolute difference of neighbouring valid pixels."""
    down = _masked_mean(jnp.abs(image[1:] - image[:-1]), valid[1:])
    across = _masked_mean(jnp.abs(image[:, 1:] - image[:, :-1]), valid[:, 1:])
    return down + across


def squared_variation(image: Float[Array, "H W D"], valid: Bool[Array, "H W"]) -> Float[Array, ""]:
    """Total variation as the authors of BAGS have it: twice the mean squared differences of neighbouring valid pixels."""
    return 2.0 * (mse(image[1:], image[:-1], valid[1:]) + mse(image[:, 1:], image[:, :-1], valid[:, 1:]))
