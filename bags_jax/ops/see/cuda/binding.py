"""Projects and colours Gaussians by the kernels of see.cu: one launch for the values, one for the gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bags_jax.geometry import camera_center
from bags_jax.ops.toolchain.cuda_launch import Kernel, launch
from bags_jax.spherical_harmonics import SH_C0
from bags_jax.structs import Camera, Canvas, Gaussians, Projected, Seen

BLOCK, NUM_CAMERA = 128, 20  # Gaussians of a block, numbers of a camera; see.cu has the same numbers
DEAD = -1.0  # filter of the rows that are not in use


def _launch(name: str, widths: tuple[int, ...], gaussians: Gaussians, inputs, *cotangents, sums: bool = False):
    """Launches a kernel.

    Args:
      widths: columns of each result, which has a row for each Gaussian.
      inputs: numbers of the camera, settings of the view, and 3D filter.
      sums: add a result with a row of camera gradients for each block.
    """
    camera, settings, filter_3d = inputs
    num, num_rest, _ = gaussians.sh_rest.shape
    blocks = -(-num // BLOCK)
    shapes = [(num, width) for width in widths] + [(blocks, NUM_CAMERA)] * sums
    outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    rest = gaussians.sh_rest if num_rest else gaussians.sh_dc  # an array of size 0 has no address
    arrays = gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.logit_opacities, gaussians.sh_dc, rest
    sizes = jnp.array([num, num_rest], jnp.int32)
    operands = sizes, camera, settings, *arrays, filter_3d, *cotangents
    return launch(Kernel("see", name, BLOCK), outputs, *operands, grid=(blocks, 1))


@jax.custom_vjp
def _see(gaussians: Gaussians, camera: Float[Array, "20"], settings: Float[Array, "6"], filter_3d: Float[Array, "N"]):
    means, covs, conics, depths, opacities, radii, features = _launch(
        "see", (2, 3, 3, 1, 1, 2, 4), gaussians, (camera, settings, filter_3d)
    )
    return Seen(Projected(means, covs, conics, depths[:, 0], opacities[:, 0], radii), features)


def _forward(*inputs):
    return _see(*inputs), inputs


def _backward(inputs, cotangent: Seen):
    gaussians, *others = inputs
    of, num_rest = cotangent.projected, gaussians.sh_rest.shape[1]
    widths = 3, 4, 3, 1, 3, max(num_rest, 1)
    cotangents = of.means_px, of.conics, of.opacities, cotangent.features
    means, quats, log_scales, logits, dc, harmonics, sums = _launch(
        "see_gradient", widths, gaussians, others, *cotangents, sums=True
    )
    # With one view a step, on one device, XLA computes this product where the optimizer needs it: it is never written.
    rest = harmonics[:, :num_rest, None] * (dc / SH_C0)[:, None]
    d_gaussians = Gaussians(means, quats, log_scales, logits[:, 0], dc[:, None], rest)
    return d_gaussians, jnp.sum(sums, axis=0), None, None


_see.defvjp(_forward, _backward)


def see(
    gaussians: Gaussians,
    alive: Bool[Array, "N"],
    filter_3d: Float[Array, "N"],
    camera: Camera,
    canvas: Canvas,
    sh_degree: Int[Array, ""] | int,
) -> Seen:
    """See ops/see/__init__.py."""
    intrinsics = jnp.concatenate([camera.K[0], camera.K[1, 1:]])
    numbers = jnp.concatenate([camera.viewmat[:3].reshape(-1), intrinsics, camera_center(camera.viewmat)])
    sides = canvas.width, canvas.height
    settings = jnp.array([*sides, canvas.near_plane, canvas.eps_2d, sh_degree, canvas.ray_depth], jnp.float32)
    return _see(gaussians, numbers, settings, jax.lax.stop_gradient(jnp.where(alive, filter_3d, DEAD)))
