"""From parameters to images: what a camera sees of each Gaussian, the rasterizer; and the same image blurred."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from bags_jax.blur_model.protocol import BlurModel
from bags_jax.errors import UserError
from bags_jax.ops import see as ops_see
from bags_jax.ops.blur import blur
from bags_jax.ops.blur.blocks import mean_blocks
from bags_jax.ops.rasterize import rasterize
from bags_jax.ops.see import xla
from bags_jax.schedule import Stage
from bags_jax.spherical_harmonics import MAX_DEGREE
from bags_jax.structs import BlurField, BlurMoments, Camera, Canvas, Gaussians, Projected, Seen
from bags_jax.tone import linear_to_srgb, srgb_to_linear


@dataclasses.dataclass(frozen=True)
class View:
    """The static part of a render."""

    width: int  # px
    height: int  # px
    max_intersections: int  # size of the intersection buffer
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    margin: int = 0  # px rendered around the image on each side: light that blur carries in
    eps_2d: float = 0.1  # variance of Mip-Splatting's 2D filter, px^2
    near_plane: float = 0.2  # scene units, as in 3DGS
    backend: str = "auto"  # see `rasterize`
    deterministic: bool = False  # the same
    ray_depth: bool = False  # depth is the distance from the camera; False: camera z

    @property
    def canvas(self) -> Canvas:
        """What is drawn on: the image with its margin."""
        sides = self.width + 2 * self.margin, self.height + 2 * self.margin
        return Canvas(*sides, self.near_plane, self.eps_2d, self.ray_depth)


@struct.dataclass
class Rendered:
    """One sharp render, with the margin of its view."""

    image: Float[Array, "H W 3"]  # sRGB, background included; not clipped
    depth: Float[Array, "H W"]  # sum of weight times camera z (View.ray_depth: distance from the camera), scene units
    alpha: Float[Array, "H W"]
    projected: Projected
    num_intersections: Int[Array, ""]
    num_dropped: Int[Array, ""]
    margin: int = struct.field(pytree_node=False, default=0)  # px on each side of the arrays

    def crop_margin(self) -> "Rendered":
        """Removes the margin from image, depth and alpha; `projected` stays relative to the canvas."""
        m = self.margin
        height, width = (size - m for size in self.alpha.shape)
        image, depth, alpha = (x[m:height, m:width] for x in (self.image, self.depth, self.alpha))
        return dataclasses.replace(self, image=image, depth=depth, alpha=alpha, margin=0)


def project_gaussians(
    gaussians: Gaussians, alive: Bool[Array, "N"], filter_3d: Float[Array, "N"], camera: Camera, view: View
) -> Projected:
    """Projects living Gaussians to the canvas of a view, with both filters of Mip-Splatting."""
    return xla.project_gaussians(gaussians, alive, filter_3d, _with_margin(camera, view.margin), view.canvas)


def _with_margin(camera: Camera, margin: int) -> Camera:
    """The camera of a canvas that extends `margin` px beyond the image on each side."""
    return dataclasses.replace(camera, K=camera.K.at[:2, 2].add(margin)) if margin else camera


def render(
    gaussians: Gaussians,
    alive: Bool[Array, "N"],
    filter_3d: Float[Array, "N"],
    camera: Camera,
    *,
    view: View,
    sh_degree: Int[Array, ""] | int = MAX_DEGREE,
) -> Rendered:
    """Renders the scene sharp, with its depth: `draw` of what `see` gives, which describes the arguments."""
    return draw(see(gaussians, alive, filter_3d, camera, view=view, sh_degree=sh_degree), view=view)


def see(
    gaussians: Gaussians,
    alive: Bool[Array, "N"],
    filter_3d: Float[Array, "N"],
    camera: Camera,
    *,
    view: View,
    sh_degree: Int[Array, ""] | int = MAX_DEGREE,
    probe_px: Float[Array, "N 2"] | None = None,
) -> Seen:
    """Projects and colours the Gaussians for one camera; each row for itself.

    Args:
      gaussians: world frame, before activation.
      alive: the rows in use.
      filter_3d: Mip-Splatting's 3D filter, scene units.
      camera: one camera, OpenCV axes.
      view: size, buffer, background and filters.
      sh_degree: highest degree in use.
      probe_px: zeros added to the projected means; density control uses their gradient.
    """
    camera = _with_margin(camera, view.margin)
    seen = ops_see.see(gaussians, alive, filter_3d, camera, view.canvas, sh_degree=sh_degree, backend=view.backend)
    if probe_px is None:
        return seen
    projected = dataclasses.replace(seen.projected, means_px=seen.projected.means_px + probe_px)
    return dataclasses.replace(seen, projected=projected)


def keep_visible(seen: Seen, size: int) -> tuple[Seen, Int[Array, "S"]]:
    """Keeps the visible Gaussians, in their order, in arrays of `size` rows; drops those that do not fit.

    Returns:
      what is kept, and the row of each. Surplus rows of the arrays are culled, with row N.
    """
    visible = seen.projected.radii_px[:, 0] > 0
    (rows,) = jnp.nonzero(visible, size=size, fill_value=visible.shape[0])
    return jax.tree.map(lambda x: x.at[rows].get(mode="fill", fill_value=0), seen), rows


def draw(seen: Seen, *, view: View) -> Rendered:
    """Rasterizes what one camera sees, over the background of its view."""
    output = rasterize(
        seen.projected,
        seen.features,
        width=view.canvas.width,
        height=view.canvas.height,
        max_intersections=view.max_intersections,
        backend=view.backend,
        deterministic=view.deterministic,
    )
    return Rendered(
        image=output.colors[..., :3] + (1.0 - output.alphas[..., None]) * jnp.asarray(view.background)[None, None],
        depth=output.colors[..., 3],
        alpha=output.alphas,
        projected=seen.projected,
        num_intersections=output.num_intersections,
        num_dropped=output.num_dropped,
        margin=view.margin,
    )


def normalize_depth(depth: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """Maps the depth of an image linearly to [0, 1]."""
    high, minus_low = jnp.max(jnp.stack([depth, -depth]), axis=(1, 2))  # in one reduction
    return (depth + minus_low) / jnp.maximum(high + minus_low, 1e-6)


def propose_blur(
    model: BlurModel, params: Any, view_index: Int[Array, ""], rendered: Rendered, *, stage: Stage
) -> BlurField:
    """The blur of a training view, proposed from its sharp render without the margin. No gradient flows into the render."""
    sharp = rendered.crop_margin()
    rgbd = jnp.concatenate([sharp.image, normalize_depth(sharp.depth)[..., None]], axis=-1)
    rgbd = mean_blocks(jax.lax.stop_gradient(rgbd), stage.stride)
    field = model.field(params, view_index, rgbd, head=stage.head)
    _check_field(field, rgbd.shape[:2], stage.kernel_size)
    return field


def _check_field(field: BlurField, blocks: tuple[int, ...], kernel_size: int) -> None:
    """Raises UserError if a blur model returned the field of another image or kernel size."""
    if not isinstance(field, BlurField):
        raise UserError(f"field of the blur model returned a {type(field).__name__}, expected a BlurField")
    found = jnp.shape(field.mask), jnp.shape(field.features)[:2], jnp.shape(field.weight)[-1:], jnp.shape(field.bias)
    expected = blocks, blocks, (kernel_size**2,), (kernel_size**2,)
    if found != expected:
        raise UserError(
            f"the blur model returned mask, features, taps of weight and of bias of shapes {found}, expected {expected}: "
            f"{blocks} blocks and kernels of {kernel_size} x {kernel_size} taps"
        )


def render_blurred(
    model: BlurModel,
    params: Any,
    view_index: Int[Array, ""],
    rendered: Rendered,
    *,
    stage: Stage,
    backend: str = "auto",
) -> tuple[Float[Array, "H W 3"], BlurMoments]:
    """Blurs a sharp render as the blur model says its photograph is blurred.

    Args:
      model, params: the blur model and its parameters.
      view_index: index of the training view.
      rendered: its sharp render, with the margin of the stage.
      stage: head, stride and colour space of the blur.
      backend: of ops.blur.
    Returns:
      the predicted photograph without the margin, sRGB, and the moments of its kernels.
    """
    field = propose_blur(model, params, view_index, rendered, stage=stage)
    return apply_blur(field, rendered, stage=stage, backend=backend)


def apply_blur(
    field: BlurField, rendered: Rendered, *, stage: Stage, backend: str = "auto"
) -> tuple[Float[Array, "H W 3"], BlurMoments]:
    """Blurs a sharp render by a blur field, in linear light or in sRGB: see render_blurred."""
    image, margin = rendered.image, rendered.margin
    if stage.zero_border:
        radius = stage.kernel_size // 2
        image, margin = jnp.pad(image, ((radius, radius), (radius, radius), (0, 0))), margin + radius
    how = {"stride": stage.stride, "margin": margin, "backend": backend}
    if not stage.linear_light:
        return blur(image, field, **how)
    light, moments = blur(srgb_to_linear(image), field, **how)
    return linear_to_srgb(light), moments
