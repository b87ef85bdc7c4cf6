"""The Pallas kernels against the oracle: on a TPU, else interpreted with copies, semaphores and race detection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import screen
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from screen import Scene, flat, with_gradients
from splats import HEIGHT, KINDS, WIDTH, make_splats, project_splats

from bags_jax.ops.backends import choose
from bags_jax.ops.rasterize.tpu import binding as tpu
from bags_jax.ops.rasterize.tpu.kernels import LANES
from bags_jax.splatting import rasterization

CAPACITY = 4096


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    if jax.default_backend() == "tpu":
        yield
        return
    detectors, detector = [], interpret_pallas_call.RaceDetectionState  # one per kernel run
    with pytest.MonkeyPatch.context() as patch, tpu.interpreted():
        recorded = lambda **sizes: detectors.append(detector(**sizes)) or detectors[-1]
        patch.setattr(interpret_pallas_call, "RaceDetectionState", recorded)
        yield detectors
    assert not any(state.races_found for state in detectors)
    pltpu.reset_tpu_interpret_mode_state()


kernels = functools.partial(tpu.rasterize, max_intersections=CAPACITY)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_oracle(kind):
    _, alphas, _ = screen.compare_with_oracle(kernels, Scene(project_splats(make_splats(kind), 0), 4))
    assert alphas.max() > 0.5


@pytest.mark.parametrize("channels", [1, 7, 9])
def test_any_number_of_channels(channels):
    screen.compare_with_oracle(kernels, Scene(project_splats(make_splats(), 1), channels))


@pytest.mark.parametrize("num", [LANES - 1, LANES, LANES + 1, 3 * LANES])
def test_lists_of_several_chunks(num):
    """With low opacity, so that the last chunk is visible."""
    scene = Scene(flat(num, opacity=0.02, sigma=3.0), 3)
    _, alphas, gradients = screen.compare_with_oracle(kernels, scene)
    assert 0.5 < alphas.max() < 0.9999 and (np.abs(gradients[3]).sum(axis=1) > 0).all()


def test_tiles_that_are_opaque_early():
    """Skipped chunks have no gradient."""
    scene = Scene(flat(5 * LANES, opacity=0.9, sigma=40.0), 3)
    _, alphas, gradients = screen.compare_with_oracle(kernels, scene)
    assert alphas.min() > 0.999
    depths = np.argsort(np.argsort(scene.projected.depths))
    assert (gradients[3][depths >= LANES] == 0).all() and np.isfinite(gradients[0]).all()


def test_a_skipped_chunk_is_not_used_by_the_next_tile():
    """The first tile is opaque after one chunk, while its next chunk is copied. The tiles beside it are not opaque."""
    screen.compare_with_oracle(kernels, Scene(flat(5 * LANES, opacity=0.9, sigma=7.0, center=(4.0, 8.0)), 3))


def test_many_tiles_share_a_chunk():
    """Two Gaussians per tile: dozens of tiles add to the gradients of one chunk."""
    width, height = 160, 96
    projected = flat(120, opacity=0.8, sigma=2.0)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(12) * 13.0 + 4, jnp.arange(10) * 9.0 + 4), -1).reshape(-1, 2)
    scene = Scene(projected.replace(means_px=grid), 3, width, height)
    screen.compare_with_oracle(kernels, scene)


def test_empty_picture():
    projected = flat(3, opacity=0.5, sigma=2.0)
    scene = Scene(projected.replace(means_px=projected.means_px + 1000.0), 2)
    (colors, alphas), gradients = with_gradients(kernels, scene)
    assert not colors.any() and not alphas.any() and not any(np.any(g) for g in gradients)


def test_culled_gaussians_may_be_nan():
    """Behind the last intersection ids are arbitrary, so a chunk may contain a culled Gaussian."""
    culled = flat(5, opacity=0.5, sigma=2.0)
    culled = culled.replace(radii_px=culled.radii_px.at[2].set(0.0))
    broken = culled.replace(conics=culled.conics.at[2].set(jnp.nan))
    scene = Scene(culled, 2)
    images, gradients = with_gradients(kernels, scene)
    scene.projected = broken
    for a, b in zip(jax.tree.leaves((images, gradients)), jax.tree.leaves(with_gradients(kernels, scene)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="kernels are not interpreted")
def test_races_are_detected(_kernels):
    """In every kernel run of this file, forward and backward. The fixture fails at its end if one was found."""
    before = len(_kernels)
    with_gradients(kernels, Scene(flat(1, opacity=0.5, sigma=2.0), 1))
    assert len(_kernels) == before + 2


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [1, LANES, LANES + 1])
def test_full_buffers(capacity):
    """Dropped intersections are counted, the rest is drawn, and no kernel reads behind the buffer."""
    scene = Scene(flat(2 * LANES, opacity=0.02, sigma=1.0), 2)
    cut = functools.partial(tpu.rasterize, max_intersections=capacity)
    assert cut(scene.projected, scene.features, **scene.size).num_dropped > 0
    (colors, _), gradients = with_gradients(cut, scene)
    assert colors.any() and all(np.isfinite(g).all() for g in gradients)


def test_too_many_tiles_are_refused():
    with pytest.raises(ValueError, match="at most 250000 tiles"):
        jax.eval_shape(
            functools.partial(kernels, width=12000, height=9000), flat(1, opacity=0.5, sigma=1.0), jnp.ones((1, 1))
        )


@pytest.mark.slow
def test_cameras_and_vmap():
    """The public function with two cameras, and vmap over Gaussians and cameras."""
    splats = make_splats()
    draw = lambda splats: rasterization(*splats, WIDTH, HEIGHT, max_intersections=CAPACITY, backend="tpu")[0]
    expected = rasterization(*splats, WIDTH, HEIGHT, max_intersections=CAPACITY, backend="xla")[0]
    np.testing.assert_allclose(draw(splats), expected, atol=2e-5)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), splats)
    both, gradients = jax.jit(jax.vmap(jax.value_and_grad(lambda s: draw(s).sum())))(two)
    np.testing.assert_allclose(both, expected.sum(), rtol=1e-4)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient[0], gradient[1])


@pytest.mark.parametrize("within", [lambda f: f(), lambda f: jax.eval_shape(f)], ids=["outside", "while tracing"])
def test_the_probe_passes(within):
    tpu._try.cache_clear()
    found = []
    within(lambda: found.append(tpu._try()))
    assert found == [""]


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="needs a machine without a TPU")
def test_auto_takes_it_only_on_a_tpu(monkeypatch):
    assert choose("rasterize") != "tpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choose("rasterize") == "tpu"
