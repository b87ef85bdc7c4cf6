"""The nouns of the project: plain pytrees, one line of axes, frame and unit for each field.

Axes, here and everywhere: N gaussians, C cameras, V views, H W pixels, T tiles, K kernel taps along one side, L spherical
harmonics, D channels. World frame: the scene's own, right-handed. Camera frame: OpenCV / COLMAP (+x right, +y down,
+z forward). Pixel frame: x right, y down, the centre of the first pixel at (0.5, 0.5).
"""

from typing import Any, NamedTuple

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
    """Units of the pose corrections of V training views, and the directions that no correction may take."""

    units: Float[Array, "6"]  # rotation in rad, translation in scene units, both per px at full image scale
    gauge: Float[
        Array, "V 6 7"
    ]  # orthonormal basis of the motions of the whole scene (rotation, translation, scale), px


class Canvas(NamedTuple):
    """What one camera draws on, and the filter and the depth that it draws with. Static."""

    width: int  # px
    height: int  # px
    near_plane: float  # smallest camera z, scene units
    eps_2d: float  # variance of the 2D filter, px^2
    ray_depth: bool = False  # depth is the distance from the camera; False: camera z


@struct.dataclass
class Projected:
    """N Gaussians on the screen of one camera. A Gaussian of radius 0 is culled."""

    means_px: Float[Array, "N 2"]  # px
    covs_px: Float[Array, "N 3"]  # xx, xy, yy of the screen covariance, px^2
    conics: Float[Array, "N 3"]  # xx, xy, yy of its inverse, 1 / px^2
    depths: Float[Array, "N"]  # camera z, scene units
    opacities: Float[Array, "N"]  # in [0, 1], the 2D filter's compensation included
    radii_px: Float[Array, "N 2"]  # half extent in x and y of the region with alpha >= 1 / 255


@struct.dataclass
class Seen:
    """N Gaussians as one camera sees them."""

    projected: Projected
    features: Float[Array, "N 4"]  # RGB, and the depth that is drawn, scene units


@struct.dataclass
class RasterOutput:
    """One image, blended front to back; colours are premultiplied by alpha, without a background."""

    colors: Float[Array, "H W D"]
    alphas: Float[Array, "H W"]  # 1 - remaining transmittance
    num_intersections: Int[Array, ""]  # intersections of tiles and Gaussians that the image needs
    num_dropped: Int[Array, ""]  # intersections that did not fit into the buffer; the image is right only if 0


@struct.dataclass
class BlurField:
    """A blur kernel and a mask value for each pixel of one training view, constant over blocks of stride x stride px.

    Kernels are not stored but computed, `kernels_of(features @ weight + bias)` (ops/blur/), over KK = K * K taps, row-major
    (dy, dx).
    """

    features: Float[Array, "h w F"]
    weight: Float[Array, "F KK"]
    bias: Float[Array, "KK"]  # of the last layer, and of the view where the model has such
    mask: Float[Array, "h w"]  # in [0, 1]: 0 keeps the sharp render
    bound: float = struct.field(pytree_node=False, default=0.0)  # logits are clipped to +- bound; 0: not clipped


@struct.dataclass
class BlurMoments:
    """Mask and kernel moments of one view: all that training needs of its blur. Moments are about the pixel (block) itself."""

    mask: Float[Array, "h w"]  # in [0, 1]
    centroid: Float[Array, "2 h w"]  # sum_k h_k times dx, dy, px
    second: Float[Array, "3 h w"]  # sum_k h_k times dx dx, dx dy, dy dy, px^2


@struct.dataclass
class Dataset:
    """Training views at one image scale on the device; smaller photographs are padded at the right and bottom."""

    images: Any  # uint8 [S, H, W, 3]; S = V, or the photographs of one dispatch
    sizes: Int[Array, "V 2"]  # true height and width, px
    cameras: Camera  # leading axis V; the poses of the capture
    extent: Float[Array, ""]  # of the scene, scene units; the learning rate of the means is a share of it
    near_plane: Float[Array, ""]  # depth at which rendering begins, scene units
    pose_frame: PoseFrame | None = None  # None: poses are not refined
    valid: Any = None  # bool [S, H, W]: pixels to use, where the capture has masks; None: all within `sizes`
    slots: Any = None  # int32 [V]: row of `images` and `valid` that holds a view; None: the number of the view


@struct.dataclass
class DensityStats:
    """Statistics that accumulate between two density control steps."""

    grad_norms: Float[Array, "N"]  # sum over views of |d loss / d mean|, NDC
    counts: Float[Array, "N"]  # number of views in which the Gaussian was visible
    max_radii: Float[Array, "N"]  # largest screen radius so far, as a fraction of the larger side of its photograph


@struct.dataclass
class TrainState:
    """Everything that training changes, and nothing else: saved, restored and donated as a whole.

    An axis D in front of N is that of the devices, where the rows are split over them (scene/rows.py).
    """

    step: Int[Array, ""]
    seed: Int[Array, ""]  # of the order of the views; in the state, so that one compiled program serves every seed
    gaussians: Gaussians  # N = capacity
    alive: Bool[Array, "*D N"]  # the rows of gaussians in use; padding is dead
    filter_3d: Float[Array, "*D N"]  # Mip-Splatting's 3D filter, scene units
    network: Any  # parameters of the blur model by network_name; {} for plain splatting
    gaussians_opt: optax.OptState
    network_opt: optax.OptState
    poses: Float[Array, "V 6"]  # corrections of the training cameras, px (scene/pose_refinement.py); 0: not refined
    poses_opt: optax.OptState
    exposures: Float[Array, "V 3"]  # log gains of the training views (scene/exposure.py); 0: not learned
    exposures_opt: optax.OptState
    blur_px: Float[
        Array, "V"
    ]  # RMS blur width of each training view at its last step, px at full scale; 0: no step yet
    density: DensityStats


def network_name(index: int) -> str:
    """Key of a blur network in TrainState.network."""
    return ("first", "second")[index]
