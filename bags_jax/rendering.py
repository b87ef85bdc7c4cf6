"""From parameters to pictures: activation, 3D filter, colour, rasterizer; and the same picture blurred."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from bags_jax.blur_model.proposal_network import BlurProposalNetwork, normalize_depth
from bags_jax.geometry import apply_filter_3d, camera_center, project
from bags_jax.numerics import safe_normalize
from bags_jax.ops.blur import blur
from bags_jax.ops.rasterize import rasterize
from bags_jax.spherical_harmonics import MAX_DEGREE, degree_of, evaluate_sh
from bags_jax.structs import BlurField, BlurMoments, Camera, Gaussians, Projected
from bags_jax.tone import linear_to_srgb, srgb_to_linear


@dataclasses.dataclass(frozen=True)
class View:
    """How a picture is taken: its static part."""

    width: int  # px
    height: int  # px
    max_intersections: int  # room for pairs of tile and Gaussian
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    margin: int = 0  # px drawn around the picture on each side: light that blur carries into it
    eps_2d: float = 0.1  # variance of Mip-Splatting's 2D filter, px^2
    near_plane: float = 0.2  # scene units, as in 3DGS
    backend: str = "auto"  # see `rasterize`
    deterministic: bool = False  # the same

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height of what is drawn, px."""
        return self.width + 2 * self.margin, self.height + 2 * self.margin


@struct.dataclass
class Rendered:
    """One sharp picture, with the margin of its view."""

    image: Float[Array, "H W 3"]  # sRGB, background behind it; not clipped
    depth: Float[Array, "H W"]  # sum of weight times camera z, scene units
    alpha: Float[Array, "H W"]
    projected: Projected
    num_intersections: Int[Array, ""]
    num_dropped: Int[Array, ""]
    margin: int = struct.field(pytree_node=False, default=0)  # px on each side of the arrays

    def inside(self) -> "Rendered":
        """The same without its margin; what was projected stays as it was drawn."""
        m = self.margin
        height, width = (size - m for size in self.alpha.shape)
        image, depth, alpha = (x[m:height, m:width] for x in (self.image, self.depth, self.alpha))
        return dataclasses.replace(self, image=image, depth=depth, alpha=alpha, margin=0)


def activate(gaussians: Gaussians, alive: Bool[Array, "N"], filter_3d: Float[Array, "N"]):
    """Scales and opacities as they are drawn: after exp and sigmoid, the 3D filter, and the mask of living rows."""
    scales, opacities = jnp.exp(gaussians.log_scales), jax.nn.sigmoid(gaussians.logit_opacities)
    scales, opacities = apply_filter_3d(scales, opacities, filter_3d)
    return scales, jnp.where(alive, opacities, 0.0)


def project_gaussians(
    gaussians: Gaussians, alive: Bool[Array, "N"], filter_3d: Float[Array, "N"], camera: Camera, view: View
) -> Projected:
    """Living Gaussians on the canvas of a view of one camera, with both filters of Mip-Splatting."""
    scales, opacities = activate(gaussians, alive, filter_3d)
    width, height = view.canvas
    return project(
        gaussians.means,
        gaussians.quats,
        scales,
        opacities,
        _with_margin(camera, view.margin),
        width=width,
        height=height,
        near_plane=view.near_plane,
        eps_2d=view.eps_2d,
        antialiased=True,
    )


def _with_margin(camera: Camera, margin: int) -> Camera:
    """The camera of a canvas that begins `margin` px further up and to the left."""
    return dataclasses.replace(camera, K=camera.K.at[:2, 2].add(margin)) if margin else camera


def colors_towards(gaussians: Gaussians, camera: Camera, sh_degree: Int[Array, ""] | int) -> Float[Array, "N 3"]:
    """RGB of each Gaussian as a camera sees it; sh_degree may be traced: coefficients above it count as 0."""
    num_rest = gaussians.sh_rest.shape[1]
    degree = degree_of(1 + num_rest)
    degrees = jnp.floor(jnp.sqrt(jnp.arange(1, 1 + num_rest) + 1e-3))
    rest = jnp.where((degrees <= sh_degree)[:, None], gaussians.sh_rest, 0.0)
    directions = safe_normalize(gaussians.means - camera_center(camera.viewmat)[None])
    return evaluate_sh(jnp.concatenate([gaussians.sh_dc, rest], axis=1), directions, degree=degree)


def render(
    gaussians: Gaussians,
    alive: Bool[Array, "N"],
    filter_3d: Float[Array, "N"],
    camera: Camera,
    *,
    view: View,
    sh_degree: Int[Array, ""] | int = MAX_DEGREE,
    probe_px: Float[Array, "N 2"] | None = None,
) -> Rendered:
    """Renders the scene sharp, with its depth.

    Args:
      gaussians: world frame, before activation.
      alive: rows that are drawn.
      filter_3d: Mip-Splatting's 3D filter, scene units.
      camera: one camera, OpenCV axes.
      view: size, room, background and filters.
      sh_degree: highest degree in use.
      probe_px: zeros added to the projected means; their gradient is what density control looks at.
    """
    projected = project_gaussians(gaussians, alive, filter_3d, camera, view)
    if probe_px is not None:
        projected = dataclasses.replace(projected, means_px=projected.means_px + probe_px)
    features = jnp.concatenate([colors_towards(gaussians, camera, sh_degree), projected.depths[:, None]], axis=-1)
    width, height = view.canvas
    output = rasterize(
        projected,
        features,
        width=width,
        height=height,
        max_intersections=view.max_intersections,
        backend=view.backend,
        deterministic=view.deterministic,
    )
    return Rendered(
        image=output.colors[..., :3] + (1.0 - output.alphas[..., None]) * jnp.asarray(view.background)[None, None],
        depth=output.colors[..., 3],
        alpha=output.alphas,
        projected=projected,
        num_intersections=output.num_intersections,
        num_dropped=output.num_dropped,
        margin=view.margin,
    )


def propose_blur(
    network: BlurProposalNetwork, params: dict, view_index: Int[Array, ""], rendered: Rendered, *, head: int
) -> BlurField:
    """The blur that the network sees in a training view, from its sharp render without the margin."""
    seen = rendered.inside()
    rgbd = jnp.concatenate([seen.image, normalize_depth(seen.depth)[..., None]], axis=-1)
    field = network.apply({"params": params}, view_index, rgbd, head=head)
    assert isinstance(field, BlurField)  # for the type checker: flax says Any or a tuple
    return field


def render_blurred(
    network: BlurProposalNetwork, params: dict, view_index: Int[Array, ""], rendered: Rendered, *, head: int
) -> tuple[Float[Array, "H W 3"], BlurMoments]:
    """What the photograph should look like: the sharp render, blurred by what the network proposes; and what blur that is."""
    return apply_blur(network, propose_blur(network, params, view_index, rendered, head=head), rendered, head=head)


def apply_blur(
    network: BlurProposalNetwork, field: BlurField, rendered: Rendered, *, head: int
) -> tuple[Float[Array, "H W 3"], BlurMoments]:
    """A sharp render, sRGB, blurred by a field in linear light or as it is, without its margin; and what blur that is."""
    sizes = {"stride": network.stride(head), "margin": rendered.margin}
    if not network.linear_light:
        return blur(rendered.image, field, **sizes)
    light, moments = blur(srgb_to_linear(rendered.image), field, **sizes)
    return linear_to_srgb(light), moments
