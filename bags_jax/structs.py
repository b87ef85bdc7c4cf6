"""The nouns of the project: plain pytrees, one line of axes, frame and unit for each field.

Axes, here and everywhere: N gaussians, C cameras, V views, H W pixels, T tiles, K kernel taps along one side, L spherical
harmonics, D channels. World frame: the scene's own, right-handed. Camera frame: OpenCV / COLMAP (+x right, +y down,
+z forward). Pixel frame: x right, y down, the centre of the first pixel at (0.5, 0.5).
"""

from typing import Any

import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Gaussians:
    """A cloud of N anisotropic 3D Gaussians, before activation (these are the trained parameters)."""

    means: Float[Array, "N 3"]  # world frame, scene units
    quats: Float[Array, "N 4"]  # wxyz, any norm: world from Gaussian axes
    log_scales: Float[Array, "N 3"]  # log of the standard deviations, scene units
    logit_opacities: Float[Array, "N"]
    sh_dc: Float[Array, "N 1 3"]  # degree 0: colour = 0.5 + 0.28209479 * sh_dc
    sh_rest: Float[Array, "N M 3"]  # degrees 1 ..: M = (degree + 1)^2 - 1


@struct.dataclass
class Camera:
    """A pinhole camera; a leading axis V makes it a set of cameras."""

    viewmat: Float[Array, "*V 4 4"]  # cam_from_world
    K: Float[Array, "*V 3 3"]  # intrinsics, px


@struct.dataclass
class PoseFrame:
    """What corrections of the V training poses are measured in, and the directions that they must not take."""

    units: Float[Array, "6"]  # per px at full image scale: rad for the rotation, scene units for the translation
    gauge: Float[
        Array, "V 6 7"
    ]  # orthonormal: rotations, translations and scale of the whole scene, as corrections, px


@struct.dataclass
class Projected:
    """N Gaussians on the screen of one camera. radius 0 marks the culled ones."""

    means_px: Float[Array, "N 2"]  # px
    covs_px: Float[Array, "N 3"]  # xx, xy, yy of the screen covariance, px^2
    conics: Float[Array, "N 3"]  # xx, xy, yy of its inverse, 1 / px^2
    depths: Float[Array, "N"]  # camera z, scene units
    opacities: Float[Array, "N"]  # in [0, 1], the 2D filter's compensation included
    radii_px: Float[Array, "N 2"]  # half extent in x and y of the region with alpha >= 1 / 255


@struct.dataclass
class RasterOutput:
    """One image, front-to-back blended; colours are premultiplied: no background in them."""

    colors: Float[Array, "H W D"]
    alphas: Float[Array, "H W"]  # 1 - remaining transmittance
    num_intersections: Int[Array, ""]  # tile and Gaussian pairs that the image needs
    num_dropped: Int[Array, ""]  # pairs that found no room in the buffer: any but 0 means a wrong image


@struct.dataclass
class BlurField:
    """A blur kernel and a mask value for each pixel of one training view, constant over blocks of stride x stride px.

    Kernels are not stored: they are computed, `kernels_of(features @ weight + bias)` (blur_stream/) over KK = K * K taps,
    row-major (dy, dx).
    """

    features: Float[Array, "h w F"]
    weight: Float[Array, "F KK"]
    bias: Float[Array, "KK"]  # of the layer and of the view
    mask: Float[Array, "h w"]  # in [0, 1]: 0 keeps the sharp render
    bound: float = struct.field(pytree_node=False, default=0.0)  # logits are clipped to +- bound; 0: not at all


@struct.dataclass
class BlurMoments:
    """The blur of one view as far as training looks at it: mask and moments of each kernel, about its own pixel (block)."""

    mask: Float[Array, "h w"]  # in [0, 1]
    centroid: Float[Array, "2 h w"]  # sum_k h_k times dx, dy, px
    second: Float[Array, "3 h w"]  # sum_k h_k times dx dx, dx dy, dy dy, px^2


@struct.dataclass
class Dataset:
    """Training views of one image scale on the device; smaller photographs are padded at the right and bottom."""

    images: Any  # uint8 [V, H, W, 3]
    sizes: Int[Array, "V 2"]  # true height and width, px
    cameras: Camera  # leading axis V; as the capture has them
    extent: Float[Array, ""]  # of the scene, scene units: the rate of the means is a part of it
    near_plane: Float[Array, ""]  # depth at which pictures begin, scene units
    pose_frame: PoseFrame | None = None  # None: the poses are right as they are


@struct.dataclass
class DensityStats:
    """What density control accumulates over the steps between two of its turns."""

    grad_norms: Float[Array, "N"]  # sum over views of |d loss / d mean|, NDC
    counts: Float[Array, "N"]  # number of views that saw the Gaussian
    max_radii: Float[Array, "N"]  # largest screen radius so far, as a fraction of the larger side of its photograph


@struct.dataclass
class TrainState:
    """Everything that training changes, and nothing else: saved, restored and donated as a whole."""

    step: Int[Array, ""]
    seed: Int[Array, ""]  # of the order of the views; here, so that one compiled program serves every seed
    gaussians: Gaussians  # N = capacity
    alive: Bool[Array, "N"]  # the rows of gaussians in use; padding is dead
    filter_3d: Float[Array, "N"]  # Mip-Splatting's 3D filter, scene units
    network: Any  # parameters of the Blur Proposal Network; {} for plain splatting
    gaussians_opt: optax.OptState
    network_opt: optax.OptState
    poses: Float[Array, "V 6"]  # corrections of the training cameras, px (poses.py); 0 where they are not refined
    poses_opt: optax.OptState
    blur_px: Float[Array, "V"]  # RMS width of the blur of each training view when last seen, px at full scale; 0: never
    density: DensityStats
