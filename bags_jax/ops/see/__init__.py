"""`see`: Gaussians of the scene on the screen of one camera, with colour and depth."""

from jaxtyping import Array, Bool, Float, Int

from bags_jax.ops.backends import choose
from bags_jax.ops.see import xla
from bags_jax.ops.see.cuda import binding as cuda_binding
from bags_jax.structs import Camera, Canvas, Gaussians, Seen

_IMPLEMENTATIONS = {"cuda": cuda_binding, "xla": xla}


def see(
    gaussians: Gaussians,
    alive: Bool[Array, "N"],
    filter_3d: Float[Array, "N"],
    camera: Camera,
    canvas: Canvas,
    *,
    sh_degree: Int[Array, ""] | int,
    backend: str = "auto",
) -> Seen:
    """Activates, filters, projects and colours the Gaussians for one pinhole camera.

    Projection is EWA splatting with both filters of Mip-Splatting (`bags_jax.geometry`), colour that of Kerbl et al. 2023,
    section 4 (`bags_jax.spherical_harmonics`).

    Args:
      gaussians: world frame, before activation.
      alive: the rows in use; others are culled.
      filter_3d: standard deviations of the 3D filter, scene units.
      camera: OpenCV axes; its intrinsics are those of the canvas.
      canvas: what is drawn on.
      sh_degree: highest degree in use; may be traced. Coefficients above it count as 0.
      backend: "cuda" is for NVIDIA GPUs; "xla" runs everywhere; "auto" takes the best of this machine. "cpu" and "tpu" run on
        "xla".
    Returns:
      Projected, and RGB and depth of each Gaussian. Culled Gaussians have radius 0; their features are undefined.
    Raises:
      ValueError: a backend that is unknown or that this machine cannot run.
    Differentiable in Gaussians and camera, once, in reverse mode, through means_px, conics, opacities and features.
    """
    return _IMPLEMENTATIONS[choose("see", backend)].see(gaussians, alive, filter_3d, camera, canvas, sh_degree)
