"""Area averaging, alone and in the three functions that make pictures smaller."""

import numpy as np
import pytest
from PIL import Image

from bags_jax.data.area import average_areas
from bags_jax.data.images import read_photos
from bags_jax.data.pyramid import resize
from bags_jax.synthetic.mixed import coarsen

PERIOD = 40.0  # px; the phase of a wave tells which place a pixel's content comes from


def average_exactly(image, height, width):
    """Averages areas in float64: interpolates the integral at each edge, and takes differences."""
    for axis, num in ((0, height), (1, width)):
        full = image.shape[axis]
        integral = np.insert(np.cumsum(np.asarray(image, float), axis=axis), 0, 0.0, axis=axis)
        edges = np.linspace(0, full, num + 1)
        at_edges = np.apply_along_axis(
            lambda total, x=edges: np.interp(x, np.arange(len(total)), total), axis, integral
        )
        image = np.diff(at_edges, axis=axis) * num / full
    return image


@pytest.mark.parametrize("size", [(12, 17), (9, 20), (24, 34), (1, 1), (25, 35), (7, 35), (8, 5)])
def test_every_pixel_is_the_mean_of_its_area(size):
    image = np.random.default_rng(0).integers(0, 256, (25, 35, 3), dtype=np.uint8)
    averaged = average_areas(image, *size)
    assert averaged.shape == (*size, 3) and averaged.dtype == np.uint8
    # 1.0 where the size divides: Pillow rounds to 8 bits once per direction.
    assert np.abs(averaged - average_exactly(image, *size)).max() <= (1.0 if size in ((1, 1), (25, 35)) else 0.51)


def test_sizes_that_divide_come_from_pillow():
    image = np.random.default_rng(1).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((9, 12), Image.Resampling.BOX)
    np.testing.assert_array_equal(average_areas(image, 12, 9), expected)


def read_photo_at_half(image, folder):
    path = folder / "images" / "a.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)
    images, _ = read_photos([path], root=folder, camera_sizes=[image.shape[1::-1]], factor=2)
    return images[0]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "side, shrink",
    [
        (601, lambda image, _: resize(image, 0.5)),
        (601, read_photo_at_half),
        (601, lambda image, _: coarsen(image, 2)),
        (1237, lambda image, _: coarsen(image, 4)),
    ],
    ids=["pyramid", "photo", "coarse", "coarser"],
)
def test_content_stays_in_place(tmp_path, side, shrink, axis):
    """The content lies where intrinsics that scale with the image expect it, to 0.05 px of the large picture."""
    phases = 2 * np.pi * (np.arange(side) + 0.5) / PERIOD
    wave = np.stack([np.cos(phases), np.sin(phases), 0 * phases], axis=-1)
    image = np.rint(127.5 + 120 * wave).astype(np.uint8)[:, None].repeat(43, axis=1)
    small = shrink(image if axis == 0 else image.swapaxes(0, 1), tmp_path)
    x, y, _ = np.moveaxis((small if axis == 0 else small.swapaxes(0, 1))[:, 0] - 127.5, -1, 0)
    expected = (np.arange(len(x)) + 0.5) * side / len(x)
    error = (np.arctan2(y, x) / (2 * np.pi) * PERIOD - expected + PERIOD / 2) % PERIOD - PERIOD / 2
    # The mean over 20 px, because the wave is rounded to 8 bits and interpolated from few pixels.
    drift = np.convolve(error, np.full(20, 1 / 20), mode="valid")
    assert np.abs(drift).max() < 0.05
