"""What a window shows: the scene from one camera in one mode becomes a picture, with the scale of its colours."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from bags_jax.rendering import Rendered
from bags_jax.report.colors import colorize
from bags_jax.report.pictures import to_uint8
from bags_jax.run import Run
from bags_jax.run_report import choose_limit
from bags_jax.viewer.camera import PhotoCamera, WindowCamera
from bags_jax.viewer.count import count_gaussians
from bags_jax.viewer.renders import Buffers, blur_as_photo

DIMMED = 0.28  # brightness of the scene around a photograph
FULL_COUNTS = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)  # counts with the brightest colour
SOLID = 0.5  # alpha from which a pixel has a depth
FAR_SHARE, NEAR_SHARE = 0.98, 0.02  # quantiles of the depths at the ends of the scale
BOX = tuple[float, float, float, float]  # left, top, right, bottom, px


class Mode(enum.Enum):
    """Kinds of pictures; the value of each is its name in the panel."""

    SHARP = "Sharp"
    REBLURRED = "Re-blurred as the photograph"
    PHOTO = "Photograph"
    WIDTHS = "Blur width found"
    DEPTH = "Depth"
    COUNT = "Gaussians per pixel"


OF_BLUR = (Mode.REBLURRED, Mode.WIDTHS)  # modes that need a blur model


@dataclasses.dataclass(frozen=True)
class Scale:
    """Meaning of the colours of a picture, from dark to bright."""

    title: str
    low: str
    high: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of a window."""

    pixels: UInt8[np.ndarray, "H W 3"]  # sRGB
    depths: Float[np.ndarray, "H W"]  # of the scene, scene units; infinite where nothing is
    scale: Scale | None = None
    note: str = ""  # why the picture is another one than the mode says


def draw(
    run: Run,
    buffers: Buffers,
    mode: Mode,
    camera: WindowCamera,
    photo: int,
    size: tuple[int, int],
    photos: list[PhotoCamera],
) -> Picture:
    """Draws the picture of a window.

    Args:
      run: the scene at one step.
      mode: what is shown.
      camera: of the window.
      photo: index of the training view that the modes of a photograph show.
      size: width and height of the picture, px.
      photos: cameras of all training views.
    """
    rendered = buffers.render(run, camera.viewmat, camera.intrinsics(*size), size, 0)
    sharp, depths = map(np.asarray, finish(rendered))
    if mode is Mode.DEPTH:
        pixels, scale = draw_depths(depths, np.asarray(rendered.alpha))
        return Picture(pixels, depths, scale)
    if mode is Mode.COUNT:
        pixels, scale = draw_counts(rendered, *size)
        return Picture(pixels, depths, scale)
    if mode is Mode.SHARP:
        return Picture(sharp, depths)
    box = photos[photo].frame_on(camera, *size)
    if mode is Mode.PHOTO:
        return Picture(put_in_frame(sharp, run.scene.images[run.scene.train_ids[photo]], box), depths)
    blur = blur_as_photo(run, buffers, photo, camera.viewmat)
    if blur is None:
        note = "No blur model yet at this step." if run.job.model else "This run has no blur model."
        return Picture(sharp, depths, note=f"{note} The picture is sharp.")
    if mode is Mode.REBLURRED:
        return Picture(put_in_frame(sharp, to_uint8(blur.blurred), box), depths)
    limit = choose_limit(run)
    scale = Scale("Blur width, RMS", "0", f"{limit:g} px")
    return Picture(put_in_frame(sharp, colorize(blur.widths_px / limit), box), depths, scale)


@jax.jit
def finish(rendered: Rendered) -> tuple[UInt8[Array, "H W 3"], Float[Array, "H W"]]:
    """Rounds the image to 8 bits. Returns it with the mean camera z of each pixel, scene units.

    The depth is infinite where the scene is more than half transparent.
    """
    image = (jnp.clip(jnp.nan_to_num(rendered.image), 0.0, 1.0) * 255.0 + 0.5).astype(jnp.uint8)
    depth, alpha = rendered.depth, rendered.alpha
    return image, jnp.where(alpha > SOLID, depth / jnp.maximum(alpha, SOLID), jnp.inf)


def draw_depths(
    depths: Float[np.ndarray, "H W"], alpha: Float[np.ndarray, "H W"]
) -> tuple[UInt8[np.ndarray, "H W 3"], Scale]:
    """Colours of inverse depth, near bright, faded by alpha."""
    solid: Bool[np.ndarray, "H W"] = np.isfinite(depths)
    if not solid.any():
        return colorize(np.zeros_like(depths)), Scale("Depth, scene units", "-", "-")
    near, far = np.quantile(depths[solid], [NEAR_SHARE, FAR_SHARE])
    span = max(1 / near - 1 / far, 1e-9)
    nearness = np.clip((1 / np.where(solid, depths, far) - 1 / far) / span, 0, 1)
    return colorize(nearness * np.clip(alpha, 0, 1)), Scale("Depth, scene units", f"{far:.3g}", f"{near:.3g}")


def draw_counts(rendered: Rendered, width: int, height: int) -> tuple[UInt8[np.ndarray, "H W 3"], Scale]:
    """Colours of the number of Gaussians at each pixel, by its square root."""
    projected = rendered.projected
    seen = np.asarray(projected.radii_px)[:, 0] > 0
    arrays = (np.asarray(x)[seen] for x in (projected.means_px, projected.conics, projected.opacities))
    counts = count_gaussians(*arrays, width=width, height=height)
    most = float(np.quantile(counts, 0.99))
    full = next((count for count in FULL_COUNTS if count >= most), FULL_COUNTS[-1])
    return colorize(np.sqrt(counts / full)), Scale("Gaussians per pixel", "0", f"{full:,}")


def put_in_frame(
    around: UInt8[np.ndarray, "H W 3"], picture: UInt8[np.ndarray, "h w 3"], box: BOX
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws a picture into a box of another one, enlarged or reduced, and dims what is around it."""
    canvas = Image.fromarray((around * np.float32(DIMMED)).astype(np.uint8))
    left, top, right, bottom = box
    zoom_x, zoom_y = (right - left) / picture.shape[1], (bottom - top) / picture.shape[0]
    source = Image.fromarray(picture)
    if zoom_x < 1:  # reduce with averaging first
        source = source.resize((max(1, round(right - left)), max(1, round(bottom - top))), Image.Resampling.LANCZOS)
        zoom_x, zoom_y = (right - left) / source.width, (bottom - top) / source.height
    matrix = (1 / zoom_x, 0, -left / zoom_x, 0, 1 / zoom_y, -top / zoom_y)
    placed = source.transform(canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    x0, x1 = (round(min(max(x, 0), canvas.width)) for x in (left, right))
    y0, y1 = (round(min(max(y, 0), canvas.height)) for y in (top, bottom))
    if x0 < x1 and y0 < y1:
        canvas.paste(placed.crop((x0, y0, x1, y1)), (x0, y0))
    return np.asarray(canvas)
