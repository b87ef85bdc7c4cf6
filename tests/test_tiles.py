"""Intersections of tiles and Gaussians against a test of every pixel of every tile."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from splats import HEIGHT, KINDS, WIDTH, alphas_in_order, make_splats, on_cutoff, project_splats

from bags_jax.geometry import project
from bags_jax.ops.rasterize import buffer_size, rasterize
from bags_jax.ops.rasterize.reference import rasterize_reference
from bags_jax.ops.rasterize.tiles import (
    MAX_COUNT,
    SCAN_ROW,
    _running_max,
    _running_sum,
    _sort_by_tile,
    bin_tiles,
    count_intersections,
)
from bags_jax.structs import Camera, Projected

SIZE = {"width": WIDTH, "height": HEIGHT}
_bin = jax.jit(bin_tiles, static_argnames=("width", "height", "tile_size", "max_intersections"))
_count = jax.jit(count_intersections, static_argnames=("width", "height", "tile_size"))


def touched(alphas: np.ndarray, tile_size: int, limit: float) -> np.ndarray:
    """Returns [T, N]: whether some pixel of the tile has alpha >= limit."""
    height, width, num = alphas.shape
    padded = np.pad(alphas, ((0, -height % tile_size), (0, -width % tile_size), (0, 0)))
    tiles = padded.reshape(padded.shape[0] // tile_size, tile_size, -1, tile_size, num).max(axis=(1, 3))
    return tiles.reshape(-1, num) >= limit


@pytest.mark.parametrize("tile_size", [8, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_intersections_are_the_visible_ones(kind, tile_size):
    for camera in range(2):
        projected = project_splats(make_splats(kind), camera)
        tiles = _bin(projected, **SIZE, tile_size=tile_size, max_intersections=2048)
        starts, ids = np.asarray(tiles.starts), np.asarray(tiles.gaussian_ids)
        total = int(tiles.num_intersections)
        assert tiles.num_dropped == 0 and starts[0] == 0 and starts[-1] == total
        assert total == int(_count(projected, **SIZE, tile_size=tile_size))
        listed = np.zeros((len(starts) - 1, len(projected.depths)), bool)
        for tile, (start, stop) in enumerate(itertools.pairwise(starts)):
            assert (np.diff(projected.depths[ids[start:stop]]) >= 0).all()  # front to back
            assert not listed[tile, ids[start:stop]].any() and len(set(ids[start:stop])) == stop - start
            listed[tile, ids[start:stop]] = True
        order = np.argsort(projected.depths, kind="stable")
        alphas = alphas_in_order(projected, **SIZE)[..., np.argsort(order)]
        must = touched(alphas, tile_size, 1 / 255 * (1 + 1e-4))
        assert not (must & ~listed).any()
        # The test is exact for the ellipse and the square between pixel centres. Where an ellipse lies between the
        # centres no pixel shows it. These intersections are the only waste; needles have most of them.
        waste = (listed & ~touched(alphas, tile_size, 1 / 255 * (1 - 1e-4))).sum()
        assert waste <= 0.15 * total + 2


@pytest.mark.parametrize("size", [1, SCAN_ROW, 3 * SCAN_ROW + 1])
def test_scans_by_rows(size):
    counts = np.random.default_rng(0).integers(0, 9, size).astype(np.int32)
    np.testing.assert_array_equal(_running_sum(jnp.asarray(counts)), np.cumsum(counts))
    np.testing.assert_array_equal(_running_max(jnp.asarray(counts)), np.maximum.accumulate(counts))


def test_counts_beyond_int32_saturate():
    """4000 Gaussians over all 562 500 tiles of an image: 2.25e9 intersections."""
    num, side = 4000, 12000
    wide = np.tile(np.float32([1e10, 0.0, 1e10]), (num, 1))
    rows = {"means_px": np.full((num, 2), side / 2), "covs_px": wide, "conics": wide * np.float32([1e-20, 0.0, 1e-20])}
    rows |= {"depths": np.arange(num) + 1.0, "opacities": np.full(num, 0.5), "radii_px": np.full((num, 2), 3e5)}
    projected = Projected(**{name: jnp.asarray(x, jnp.float32) for name, x in rows.items()})
    size = {"width": side, "height": side, "tile_size": 16}
    assert _count(projected, **size) == MAX_COUNT
    tiles = _bin(projected, **size, max_intersections=3_000_000)
    assert tiles.num_intersections == MAX_COUNT and tiles.num_dropped == MAX_COUNT - 3_000_000
    assert not np.asarray(tiles.starts).any()  # no intersection instead of wrong ones


def test_small_buffer_counts_what_it_drops():
    projected = project_splats(make_splats("giants"), 0)
    need = int(_bin(projected, **SIZE, tile_size=8, max_intersections=2048).num_intersections)
    for capacity in (3, need - 1):  # too small for the rows of tiles, and too small by one intersection
        assert _bin(projected, **SIZE, tile_size=8, max_intersections=capacity).num_dropped > 0
    exact = _bin(projected, **SIZE, tile_size=8, max_intersections=need)
    assert exact.num_dropped == 0 and exact.num_intersections == need


def test_sorting_large_keys_equals_sorting_packed_ones():
    rng = np.random.default_rng(0)
    num_tiles, num_gaussians = 50, 1000
    rank = np.sort(rng.integers(0, num_gaussians, 4000)).astype(np.int32)
    tile = rng.integers(0, num_tiles + 1, 4000).astype(np.int32)
    tile, rank = (jnp.asarray(x) for x in np.unique(np.stack([rank, tile]), axis=1)[::-1].copy())
    packed = _sort_by_tile(tile, rank, num_tiles, num_gaussians)
    # 2^32 or more possible keys take the other path; the intersections are the same.
    plain = _sort_by_tile(tile, rank, 2**22, num_gaussians)
    np.testing.assert_array_equal(packed[0], plain[0])
    np.testing.assert_array_equal(packed[1], plain[1])
    assert (np.diff(np.asarray(packed[0]) * num_gaussians + np.asarray(packed[1])) > 0).all()


def test_real_capture_equals_oracle(shared_data: pathlib.Path):
    """138 766 points of the Mip-NeRF 360 garden at 648 x 420, with random scales, against the oracle on a crop."""
    garden = np.load(shared_data / "test_garden.npz")
    means, num = garden["means3d"], len(garden["means3d"])
    width, height = int(garden["width"]), int(garden["height"])
    rng = np.random.default_rng(0)
    extent = np.median(np.linalg.norm(means - np.median(means, axis=0), axis=1))
    scales = np.exp(rng.normal(size=(num, 3)) * 0.5) * 0.02 * extent
    arrays = means, rng.normal(size=(num, 4)), scales, rng.uniform(0.1, 0.9, num)
    camera = Camera(jnp.asarray(garden["viewmats"][0]), jnp.asarray(garden["Ks"][0]))
    seen = jax.jit(project, static_argnames=("width", "height"))(
        *(jnp.asarray(x, jnp.float32) for x in arrays), camera, width=width, height=height
    )
    features = jnp.asarray(garden["colors"] / 255.0, jnp.float32)
    capacity = buffer_size(int(_count(seen, width=width, height=height, tile_size=8)))
    image = jax.jit(lambda p, f: rasterize(p, f, width=width, height=height, max_intersections=capacity))(
        seen, features
    )
    assert image.num_dropped == 0 and image.num_intersections > 100_000
    x0, y0, w, h = 300, 200, 48, 32
    near = (
        np.abs(seen.means_px - np.array([[x0 + w / 2, y0 + h / 2]])) < seen.radii_px + np.array([[w / 2, h / 2]])
    ).all(-1)
    rows = np.flatnonzero(near)
    assert 100 < len(rows)
    crop = jax.tree.map(lambda x: x[rows], seen)
    oracle = jax.jit(lambda p, f: rasterize_reference(p, f, width=w, height=h, x0=x0, y0=y0))(crop, features[rows])
    cut = on_cutoff(alphas_in_order(crop, width=w, height=h, x0=x0, y0=y0), tolerance=1e-5)
    assert cut.mean() < 0.05
    window = np.s_[y0 : y0 + h, x0 : x0 + w]
    np.testing.assert_allclose(image.colors[window][~cut], oracle.colors[~cut], atol=2e-5)
    np.testing.assert_allclose(image.alphas[window][~cut], oracle.alphas[~cut], atol=2e-5)
