"""Pictures inside the page: JPEG or PNG as data URIs, at a size that keeps the page small."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bags_jax.report.blur_pictures import scale_taps
from bags_jax.report.colors import palette
from bags_jax.report.views import KernelGrid

PAGE_BYTES = 30_000_000  # largest page
PICTURE_SHARE = 0.72  # of the page for pictures; the rest is for kernels, maps, text and pictures that compress badly
LARGEST_SIDE = 1024  # px
JPEG_BYTES_PER_PX = 0.19  # of a photograph at JPEG_QUALITY; renders take less
JPEG_QUALITY = 84
FINE_PX = 60_000  # photographs of fewer pixels are shown enlarged, and keep finer colours
BASE64 = 4 / 3  # size of a data URI over that of its data
KERNEL_BYTES_PER_TAP = 0.6
KERNEL_SHARE = 0.15  # of the page for kernels
LEAST_KERNELS = 12  # of a view in the page


def choose_area(num_pictures: int) -> int:
    """Chooses the number of pixels of each picture of a page."""
    budget = PICTURE_SHARE * PAGE_BYTES / BASE64 / max(num_pictures, 1)
    return int(min(LARGEST_SIDE**2, budget / JPEG_BYTES_PER_PX))


def choose_num_kernels(num_views: int, side: int) -> int:
    """Chooses how many kernels of side x side taps of each view fit into the page."""
    budget = KERNEL_SHARE * PAGE_BYTES / BASE64 / max(num_views, 1)
    return max(LEAST_KERNELS, int(budget / (KERNEL_BYTES_PER_TAP * side**2)))


def fit_size(height: int, width: int, area: int) -> tuple[int, int]:
    """Height and width of a picture, reduced to at most `area` pixels and LARGEST_SIDE; never enlarged."""
    ratio = min(1.0, (area / (height * width)) ** 0.5, LARGEST_SIDE / max(height, width))
    return max(1, round(ratio * height)), max(1, round(ratio * width))


def shrink(picture: UInt8[np.ndarray, "H W 3"], area: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """Reduces a picture to at most `area` pixels."""
    height, width = fit_size(picture.shape[0], picture.shape[1], area)
    if (height, width) == picture.shape[:2]:
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def encode_jpeg(picture: UInt8[np.ndarray, "_H _W 3"], *, is_fine: bool = False) -> bytes:
    """A picture as JPEG; is_fine: hardly any loss, about three times as large."""
    file = io.BytesIO()
    quality, subsampling = (95, "4:4:4") if is_fine else (JPEG_QUALITY, "4:2:0")
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def shrink_to_jpeg(picture: UInt8[np.ndarray, "_H _W 3"], area: int) -> bytes:
    """A picture as JPEG of at most `area` pixels; fine if the picture is small and keeps its size."""
    size = picture.shape[0] * picture.shape[1]
    return encode_jpeg(shrink(picture, area), is_fine=size < min(FINE_PX, area))


def reduce_jpeg(data: bytes, ratio: float) -> bytes:
    """The same JPEG with `ratio` times as many pixels."""
    picture = Image.open(io.BytesIO(data))
    width, height = (max(1, round(side * ratio**0.5)) for side in picture.size)
    return encode_jpeg(np.asarray(picture.resize((width, height), Image.Resampling.BOX)))


def encode_indexed(values: np.ndarray) -> bytes:
    """Values in [0, 1], one for each pixel, as a PNG of 8 bits with the colours of `palette`."""
    file = io.BytesIO()
    picture = Image.fromarray(np.round(255.0 * np.clip(values, 0.0, 1.0)).astype(np.uint8), "L")
    picture.putpalette(palette().tobytes())
    picture.save(file, "PNG", compress_level=6)
    return file.getvalue()


def encode_kernels(grid: KernelGrid) -> bytes:
    """All kernels of a grid side by side, one tap a pixel, as PNG."""
    rows, columns, side, _ = grid.kernels.shape
    tiles = scale_taps(grid.kernels, grid.full_weight).transpose(0, 2, 1, 3)
    return encode_indexed(tiles.reshape(rows * side, columns * side))


def to_uri(data: bytes) -> str:
    """A JPEG or PNG as a data URI."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
