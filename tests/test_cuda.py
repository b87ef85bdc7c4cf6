"""The CUDA kernels against the oracle: on an NVIDIA GPU as they are, elsewhere their source through the CPU emulator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import screen
from emulated import emulated
from screen import Scene, flat, with_gradients
from splats import HEIGHT, KINDS, NUM, WIDTH, make_splats, project_splats

from bags_jax.cuda import launch
from bags_jax.rasterize import rasterization, rasterize
from bags_jax.rasterize.channels import channel_groups
from bags_jax.rasterize.cuda.binning import BLOCK, SCAN_BLOCK, TILE, bin_views
from bags_jax.rasterize.cuda.views import rasterize_cuda
from bags_jax.rasterize.tiles import bin_tiles

SIZE = {"width": WIDTH, "height": HEIGHT}
ROOM = 1024
ANY_ORDER = 1e-4  # of the largest: float32 sums by atomic additions, in another order each time on a GPU


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    with emulated():
        yield


def compare_with_oracle(scene: Scene, **options):
    kernels = functools.partial(rasterize_cuda, tile_size=TILE, max_intersections=ROOM, **options)
    return screen.compare_with_oracle(kernels, scene)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_oracle(kind):
    _, alphas, _ = compare_with_oracle(Scene(project_splats(make_splats(kind), 0), 4))
    assert alphas.max() > 0.5


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 9])
def test_any_number_of_channels(channels):
    compare_with_oracle(Scene(project_splats(make_splats(), 1), channels), deterministic=channels == 9)


def test_channels_are_cut_into_groups_that_have_kernels():
    assert channel_groups(3) == [(0, 3, 3)] and channel_groups(0) == [(0, 0, 1)]
    assert channel_groups(17) == [(0, 8, 8), (8, 16, 8), (16, 17, 1)]


def test_lists_longer_than_a_batch():
    compare_with_oracle(Scene(flat(150, opacity=0.03, sigma=4.0), 3))


def test_pixels_stop_before_the_end_of_their_lists():
    _, alphas, (_, _, opacities, _) = compare_with_oracle(Scene(flat(150, opacity=0.6, sigma=60.0), 3))
    assert alphas.min() > 0.999 and (opacities == 0).sum() > 100  # the hindmost never show


def test_clamped_alpha_has_no_gradient():
    _, alphas, (means, _, _, _) = compare_with_oracle(Scene(flat(1, opacity=1.0, sigma=200.0), 1))
    assert alphas.min() > 0.97 and alphas.max() == np.float32(0.999) and np.isfinite(means).all()


def test_tiles_without_gaussians():
    scene = Scene(flat(3, opacity=0.5, sigma=1.0, center=(33.0, 26.0)), 3)
    colors, alphas, _ = compare_with_oracle(scene)
    assert not colors[:16, :16].any() and alphas[20:].any()


def test_one_gaussian_over_all_tiles():
    _, alphas, _ = compare_with_oracle(Scene(flat(1, opacity=0.9, sigma=60.0), 4))
    assert alphas.min() > 0.5


def test_no_gaussian_is_seen():
    scene = Scene(flat(4, opacity=0.5, sigma=1.0), 3)
    scene.projected = scene.projected.replace(radii_px=jnp.zeros((4, 2)))
    (colors, alphas), gradients = with_gradients(
        functools.partial(rasterize_cuda, tile_size=TILE, max_intersections=ROOM), scene
    )
    assert not colors.any() and not alphas.any() and not any(g.any() for g in gradients)


def test_no_gaussian_at_all():
    splats = make_splats()
    empty = splats._replace(**{name: getattr(splats, name)[:0] for name in splats._fields[:5]})
    colors, alphas, meta = rasterization(*empty, **SIZE, backend="cuda")
    assert colors.shape == (2, HEIGHT, WIDTH, 3) and not colors.any() and not alphas.any()
    assert not meta["num_intersections"].any()


def test_small_buffer_counts_what_it_drops():
    projected, features = project_splats(make_splats("giants"), 0), jnp.ones((NUM, 3))
    full = rasterize(projected, features, **SIZE, backend="cuda")
    need = int(full.num_intersections)
    assert full.num_dropped == 0
    for room in (1, need - 1, need):
        output = rasterize(projected, features, **SIZE, backend="cuda", max_intersections=room)
        assert output.num_intersections == need and output.num_dropped == need - room
    np.testing.assert_array_equal(output.colors, full.colors)


def _loss(projected, features, deterministic):
    output = rasterize_cuda(
        projected, features, **SIZE, tile_size=TILE, max_intersections=ROOM, deterministic=deterministic
    )
    return jnp.sum(output.colors**2) + jnp.sum(output.alphas), output


_draw = jax.jit(jax.value_and_grad(_loss, (0, 1), has_aux=True), static_argnums=2)


def assert_trees_equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def assert_sums_equal(a, b, *, deterministic: bool):
    """To rounding where sums have a fixed order, which the emulator always keeps."""
    in_order = deterministic or jax.default_backend() == "cpu"
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        atol = 1e-6 if in_order else ANY_ORDER * np.abs(y).max()
        np.testing.assert_allclose(x, y, rtol=1e-6 if in_order else ANY_ORDER, atol=atol)


@pytest.mark.parametrize("deterministic", [False, True])
def test_vmap_over_cameras_is_each_alone(deterministic):
    views = [project_splats(make_splats(kind), c) for kind, c in (("typical", 0), ("giants", 1), ("opaque", 0))]
    features = jnp.asarray(np.random.default_rng(0).normal(size=(NUM, 3)), jnp.float32)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *views)
    together = jax.vmap(_draw, (0, None, None))(stacked, features, deterministic)
    for camera, view in enumerate(views):
        alone = _draw(view, features, deterministic)
        assert_sums_equal(jax.tree.map(lambda x, c=camera: x[c], together), alone, deterministic=deterministic)
    # Two axes become one; and the gradient of a vmap is the vmap of the gradient.
    pairs = jax.tree.map(lambda x: jnp.stack([x[:2], x[1:]]), stacked)
    nested = jax.vmap(jax.vmap(_draw, (0, None, None)), (0, None, None))(pairs, features, deterministic)
    second = jax.tree.map(lambda x: x[1], together)
    assert_sums_equal(jax.tree.map(lambda x: x[1, 0], nested), second, deterministic=deterministic)

    @jax.jit
    def total(features):
        return jnp.sum(jax.vmap(lambda p: _loss(p, features, deterministic)[0])(stacked))

    summed = together[1][1].sum(0)
    np.testing.assert_allclose(jax.grad(total)(features), summed, rtol=1e-5, atol=1e-5 * max(1.0, abs(summed).max()))


def test_cameras_of_one_call_are_each_alone():
    splats = make_splats("opaque")
    colors, alphas, meta = rasterization(*splats, **SIZE, render_mode="RGB+D", backend="cuda")
    for camera in range(2):
        alone = splats._replace(viewmats=splats.viewmats[camera][None], Ks=splats.Ks[camera][None])
        colors_1, alphas_1, meta_1 = rasterization(*alone, **SIZE, render_mode="RGB+D", backend="xla")
        np.testing.assert_allclose(colors[camera], colors_1[0], atol=1e-5)
        np.testing.assert_allclose(alphas[camera], alphas_1[0], atol=1e-5)
        np.testing.assert_allclose(meta["means2d"][camera], meta_1["means2d"][0], atol=1e-5)


def test_fixed_order_is_bit_equal_to_itself_and_close_to_the_other():
    projected = project_splats(make_splats("giants"), 0)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(NUM, 5)), jnp.float32)
    first, second, atomic = (_draw(projected, features, fixed) for fixed in (True, True, False))
    assert_trees_equal(first, second, rtol=0, atol=0)
    assert_sums_equal(first, atomic, deterministic=False)


def test_more_pairs_than_can_be_counted_are_dropped_aloud():
    """The pairs of one block of Gaussians, 256 of them over more than 8192 tiles each, are more than a scan adds up."""
    sizes = jnp.array([2 * BLOCK, ROOM, 128, 128, 2, 0], jnp.int32)
    sums = jnp.array([[5, 7], [5, 2**22]], jnp.int32)
    kernel = launch.Kernel("binning", "scan_blocks", SCAN_BLOCK)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, 2), (2,))]
    begins, totals = jax.jit(lambda *x: launch.launch(kernel, shapes, *x, grid=(2, 1)))(sizes, sums)
    assert begins.tolist() == [[0, 5], [0, 5]] and totals.tolist() == [12, 2**31 - 1]


@pytest.mark.parametrize(
    "kind, width, height, cameras",
    [("giants", WIDTH, HEIGHT, 1), ("needles", WIDTH, HEIGHT, 2), ("giants", 300, 300, 2), ("needles", 4000, 2200, 2)],
)
def test_pairs_are_those_of_the_xla_backend(kind, width, height, cameras):
    """From one tile to more than a warp has lanes, and to more than 2^16 keys."""
    scale = width / WIDTH
    views = [project_splats(make_splats(kind, num=40), c) for c in range(cameras)]
    views = [
        v.replace(means_px=v.means_px * scale, covs_px=v.covs_px * scale**2, radii_px=v.radii_px * scale) for v in views
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *views)
    room = 2**18 if width > 1000 else 2**13
    size = {"width": width, "height": height}
    bin_all = jax.jit(functools.partial(bin_views, **size, room=room, with_slots=True))
    pairs = bin_all(stacked.means_px, stacked.covs_px, stacked.radii_px, stacked.depths)
    for c, view in enumerate(views):
        # On the CPU: XLA on a GPU contracts and divides otherwise, and a needle ends in another tile now and then.
        view = jax.device_put(view, jax.devices("cpu")[0])
        tiles = jax.jit(functools.partial(bin_tiles, **size, tile_size=TILE, max_intersections=room))(view)
        total = int(tiles.num_intersections)
        assert tiles.num_dropped == 0 and total == pairs.num_intersections[c]
        np.testing.assert_array_equal(pairs.starts[c], tiles.starts)
        np.testing.assert_array_equal(pairs.ids[c, :total], tiles.gaussian_ids[:total])
        assert pairs.slots is not None
        begins, counts = np.asarray(pairs.begins[c]), np.asarray(pairs.counts[c])
        slots, ids = np.asarray(pairs.slots[c, :total]), np.asarray(pairs.ids[c, :total])
        assert sorted(slots) == list(range(total))
        assert ((slots >= begins[ids]) & (slots < begins[ids] + counts[ids])).all()


@pytest.mark.parametrize(
    "dtype, wide",  # wide: jax_enable_x64, without which no array is float64
    [("float16", False), ("bfloat16", False), ("float16", True), ("bfloat16", True), ("float64", True)],
)
def test_kernels_are_given_float32_whatever_comes(dtype, wide):
    """They take memory for what they expect: half as wide a number would be read as rubbish, and beyond its end."""
    with jax.enable_x64(wide):
        splats = make_splats()
        splats = type(splats)(*(x.astype(dtype) for x in splats))
        exact = type(splats)(*(jnp.asarray(x, jnp.float32) for x in splats))
        picture = lambda splats: rasterization(*splats, WIDTH, HEIGHT, max_intersections=2048, backend="cuda")[0]
        np.testing.assert_array_equal(picture(splats), picture(exact))


def test_a_kernel_refuses_what_it_would_misread():
    kernel, shape = launch.Kernel("binning", "find_ranges_u16", 256), jax.ShapeDtypeStruct((3,), jnp.int32)
    with pytest.raises(TypeError, match="find_ranges_u16: operands of bfloat16 came, expected float32, int32"):
        launch.launch(kernel, [shape], jnp.zeros(6, jnp.int32), jnp.zeros(4, jnp.bfloat16), grid=(1, 1))
