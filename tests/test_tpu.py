"""The TPU kernels against the oracle: on a TPU as they are, elsewhere interpreted, copies, semaphores and races included."""

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
    looked_at, detector = [], interpret_pallas_call.RaceDetectionState  # one for each kernel that is run
    with pytest.MonkeyPatch.context() as patch, tpu.interpreted():
        recorded = lambda **sizes: looked_at.append(detector(**sizes)) or looked_at[-1]
        patch.setattr(interpret_pallas_call, "RaceDetectionState", recorded)
        yield looked_at
    assert not any(state.races_found for state in looked_at)
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
    """Thin enough that the light reaches the last one."""
    scene = Scene(flat(num, opacity=0.02, sigma=3.0), 3)
    _, alphas, gradients = screen.compare_with_oracle(kernels, scene)
    assert 0.5 < alphas.max() < 0.9999 and (np.abs(gradients[3]).sum(axis=1) > 0).all()


def test_tiles_that_are_opaque_early():
    """Chunks that are left out have no gradient."""
    scene = Scene(flat(5 * LANES, opacity=0.9, sigma=40.0), 3)
    _, alphas, gradients = screen.compare_with_oracle(kernels, scene)
    assert alphas.min() > 0.999
    depths = np.argsort(np.argsort(scene.projected.depths))
    assert (gradients[3][depths >= LANES] == 0).all() and np.isfinite(gradients[0]).all()


def test_a_chunk_that_is_left_out_is_not_taken_for_the_next():
    """The first tile is opaque at once, with its next chunk on the way; the light goes through those beside it."""
    screen.compare_with_oracle(kernels, Scene(flat(5 * LANES, opacity=0.9, sigma=7.0, center=(4.0, 8.0)), 3))


def test_many_tiles_share_a_chunk():
    """Two Gaussians a tile: dozens of tiles put the gradients of one chunk together."""
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


def test_what_is_not_drawn_may_be_anything():
    """Beyond the pairs, ids are arbitrary, so that a Gaussian that was culled may lie in a chunk."""
    culled = flat(5, opacity=0.5, sigma=2.0)
    culled = culled.replace(radii_px=culled.radii_px.at[2].set(0.0))
    broken = culled.replace(conics=culled.conics.at[2].set(jnp.nan))
    scene = Scene(culled, 2)
    images, gradients = with_gradients(kernels, scene)
    scene.projected = broken
    for a, b in zip(jax.tree.leaves((images, gradients)), jax.tree.leaves(with_gradients(kernels, scene)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="nothing is interpreted")
def test_races_are_looked_for(_kernels):
    """In every kernel that this file runs, forward and backward: the fixture asks at its end whether one was found."""
    before = len(_kernels)
    with_gradients(kernels, Scene(flat(1, opacity=0.5, sigma=2.0), 1))
    assert len(_kernels) == before + 2


@pytest.mark.parametrize("capacity", [1, LANES, LANES + 1])
def test_full_buffers(capacity):
    """What found no capacity is counted, and the rest is drawn: nothing is read from behind the buffer."""
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


def test_cameras_and_vmap():
    """The public function, two cameras, and vmap over what they look at."""
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


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="it is one")
def test_auto_takes_it_on_a_tpu_and_nowhere_else(monkeypatch):
    assert choose("rasterize") != "tpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choose("rasterize") == "tpu"
