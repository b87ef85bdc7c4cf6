"""Renders of a run for the viewer: any camera at any size, and the blur of one photograph."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.blur_model.protocol import BlurModel
from bags_jax.blur_model.statistics import pixel_statistics
from bags_jax.data.pyramid import scale_size
from bags_jax.growth import HEADROOM
from bags_jax.ops.rasterize import buffer_size
from bags_jax.rendering import Rendered, apply_blur, propose_blur
from bags_jax.run import Run, refined_viewmats
from bags_jax.schedule import Stage
from bags_jax.step import eval_step
from bags_jax.structs import Camera, network_name
from bags_jax.viewer.camera import PhotoCamera

FIRST_BUFFER = 1 << 18  # intersections
PER_GAUSSIAN = 8  # intersections of a Gaussian, above the mean of most views

_render = jax.jit(eval_step, static_argnames="view")


class Buffers:
    """The size of the intersection buffer: large at first and doubled where it is too small, so that few programs are compiled."""

    def __init__(self):
        self._size = FIRST_BUFFER

    def render(
        self,
        run: Run,
        viewmat: Float[np.ndarray, "4 4"],
        K: Float[np.ndarray, "3 3"],
        size: tuple[int, int],
        margin: int,
    ) -> Rendered:
        """The sharp render of one camera; viewmat cam_from_world, K, size (width, height) and margin px."""
        camera = Camera(jnp.asarray(viewmat, jnp.float32), jnp.asarray(K, jnp.float32))
        self._size = max(self._size, _power_of_two(PER_GAUSSIAN * run.state.alive.shape[0]))
        while True:
            view = run.job.view(*size, margin=margin, max_intersections=buffer_size(self._size))
            rendered = _render(run.state, camera, view=view)
            if not int(rendered.num_dropped):
                return rendered
            self._size = _power_of_two(int(HEADROOM * int(rendered.num_intersections)))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def photo_cameras(run: Run) -> list[PhotoCamera]:
    """The cameras of the training photographs, at full size, with their refined poses."""
    scene, viewmats = run.scene, refined_viewmats(run)
    sizes = {i: scene.images[i].shape[:2] for i in scene.train_ids}
    return [PhotoCamera(viewmats[i], scene.Ks[i], width=sizes[i][1], height=sizes[i][0]) for i in scene.train_ids]


@dataclasses.dataclass(frozen=True)
class PhotoBlur:
    """A view, blurred as one photograph is, at the image scale of the last training stage."""

    blurred: Float[np.ndarray, "h w 3"]  # sRGB
    widths_px: Float[np.ndarray, "_h _w"]  # RMS width of the blur, px of the photograph


def blur_as_photo(run: Run, buffers: Buffers, index: int, viewmat: Float[np.ndarray, "4 4"]) -> PhotoBlur | None:
    """Renders what the camera of a photograph would see from another pose, and blurs it as that photograph is blurred.

    Args:
      index: of the training view.
      viewmat: cam_from_world; exact only at the pose of the photograph, since its blur was learned there.
    Returns:
      None: there is no blur model, or it has not started yet.
    """
    model, stage, scene = run.model, run.stage, run.scene
    if model is None:
        return None
    sizes = [scene.images[i].shape for i in scene.train_ids]
    scaled = [scale_size(height, width, stage.scale) for height, width, _ in sizes]
    height, width = np.max(scaled, axis=0)  # the network was trained at the size of the largest photograph
    view = scene.train_ids[index]
    full_height, full_width = scene.images[view].shape[:2]
    rows, columns = scaled[index]
    K = scene.Ks[view] * np.array([columns / full_width, rows / full_height, 1.0])[:, None]
    canvas = buffers.render(run, viewmat, K, (int(width), int(height)), stage.margin)
    params = run.state.network[network_name(stage.network)]
    blurred, widths = _blur(params, jnp.int32(index), canvas, model=model, stage=stage)
    blocks = [slice(-(-side // stage.stride)) for side in (rows, columns)]
    return PhotoBlur(np.asarray(blurred)[:rows, :columns], np.asarray(widths)[*blocks] / stage.scale)


@functools.partial(jax.jit, static_argnames=("model", "stage"))
def _blur(
    params, index, rendered: Rendered, *, model: BlurModel, stage: Stage
) -> tuple[Float[Array, "h w 3"], Float[Array, "_h _w"]]:
    field = propose_blur(model, params, index, rendered, stage=stage)
    blurred, moments = apply_blur(field, rendered, stage=stage)
    return blurred, pixel_statistics(moments).rms_width
