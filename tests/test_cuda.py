"""The CUDA rasterizer against the oracle: on an NVIDIA GPU, else on the PTX emulator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import screen
from screen import Scene, flat, with_gradients
from splats import HEIGHT, KINDS, NUM, WIDTH, make_splats, project_splats

from bags_jax.errors import UserError
from bags_jax.ops.limits import TILE
from bags_jax.ops.rasterize import measure_buffer, rasterize
from bags_jax.ops.rasterize.channels import channel_groups
from bags_jax.ops.rasterize.cuda.binding import count_intersections as count_cuda
from bags_jax.ops.rasterize.cuda.binding import rasterize as rasterize_cuda
from bags_jax.ops.rasterize.cuda.binning import BLOCK, SCAN_BLOCK, bin_views
from bags_jax.ops.rasterize.tiles import bin_tiles, total
from bags_jax.ops.toolchain import cuda_launch
from bags_jax.splatting import rasterization
from bags_jax.structs import Projected
from tools import ptx_emulator

SIZE = {"width": WIDTH, "height": HEIGHT}
CAPACITY = 1024
ANY_ORDER = 1e-4  # relative to the largest: atomic additions in float32 have another order each time on a GPU


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    if problem := ptx_emulator.find_problem():
        pytest.skip(problem)
    with ptx_emulator.emulated():
        yield


def compare_with_oracle(scene: Scene, **options):
    kernels = functools.partial(rasterize_cuda, max_intersections=CAPACITY, **options)
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
    assert alphas.min() > 0.999 and (opacities == 0).sum() > 100  # the Gaussians farthest back are never visible


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
    (colors, alphas), gradients = with_gradients(functools.partial(rasterize_cuda, max_intersections=CAPACITY), scene)
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
    for capacity in (1, need - 1, need):
        output = rasterize(projected, features, **SIZE, backend="cuda", max_intersections=capacity)
        assert output.num_intersections == need and output.num_dropped == need - capacity
    np.testing.assert_array_equal(output.colors, full.colors)


def _loss(projected, features, deterministic):
    output = rasterize_cuda(projected, features, **SIZE, max_intersections=CAPACITY, deterministic=deterministic)
    return jnp.sum(output.colors**2) + jnp.sum(output.alphas), output


_draw = jax.jit(jax.value_and_grad(_loss, (0, 1), has_aux=True), static_argnums=2)


def assert_trees_equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def assert_sums_equal(a, b, *, deterministic: bool):
    """Compares up to rounding where sums have a fixed order. The emulator always has one."""
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
    # Two batch axes are folded into one, and the gradient of a vmap is the vmap of the gradient.
    two_by_two = jax.tree.map(lambda x: jnp.stack([x[:2], x[1:]]), stacked)
    nested = jax.vmap(jax.vmap(_draw, (0, None, None)), (0, None, None))(two_by_two, features, deterministic)
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


def test_counts_beyond_int32_saturate():
    """The first block of the third camera reaches the largest count: later blocks begin at the largest count."""
    sizes = jnp.array([2 * BLOCK, CAPACITY, 128, 128, 3, 0], jnp.int32)
    sums = jnp.array([[5, 7], [2**22, 2**22], [2**31 - 1, 7]], jnp.int32)
    kernel = cuda_launch.Kernel("binning", "scan_blocks", SCAN_BLOCK)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((3, 2), (3,))]
    begins, totals = jax.jit(lambda *x: cuda_launch.launch(kernel, shapes, *x, grid=(3, 1)))(sizes, sums)
    assert begins.tolist() == [[0, 5], [0, 2**22], [0, 2**31 - 1]] and totals.tolist() == [12, 2**23, 2**31 - 1]


def test_one_block_of_gaussians_with_many_intersections():
    """256 Gaussians over 8320 tiles each, and some behind them: all intersections are listed, in order."""
    num, tiles = BLOCK + 16, 128 * 65
    one = jax.tree.map(lambda x: x[None], flat(num, opacity=0.5, sigma=2000.0))
    bins = functools.partial(bin_views, width=2048, height=1040, capacity=num * tiles + 1000, with_slots=False)
    intersections = jax.jit(bins)(one)
    assert intersections.num_intersections == num * tiles and intersections.num_dropped == 0
    np.testing.assert_array_equal(intersections.starts[0], np.arange(tiles + 1) * num)
    ids = np.asarray(intersections.ids[0, : num * tiles]).reshape(tiles, num)
    np.testing.assert_array_equal(ids, np.broadcast_to(np.argsort(one.depths[0]), ids.shape))


@pytest.mark.parametrize("capacity, side", [(2**31 - 1, 16), (8, 2**16)])
def test_sizes_beyond_int32_are_refused(capacity, side):
    """A buffer of the largest count, where dropping would not be noticed; an image of too many tiles."""
    one = jax.tree.map(lambda x: x[None], flat(4, opacity=0.5, sigma=1.0))
    with pytest.raises(
        UserError, match=f"4 Gaussians, 1 x {side} x {side} px and a buffer for {capacity} intersections came"
    ):
        bin_views(one, width=side, height=side, capacity=capacity, with_slots=False)


def scattered(seed: int, num: int, width: int, height: int) -> Projected:
    """Makes ellipses of many sizes and shapes, all over the image."""
    rng = np.random.default_rng(seed)
    sigmas, angles = np.exp(rng.normal(2.0, 1.5, (num, 2))), rng.uniform(0, np.pi, num)
    turns = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], -1).reshape(-1, 2, 2)
    covs = turns @ (sigmas[..., None] ** 2 * np.swapaxes(turns, 1, 2))
    shapes = covs[:, [0, 0, 1], [0, 1, 1]]
    arrays = {
        "means_px": rng.uniform(size=(num, 2)) * (width, height),
        "covs_px": shapes,
        "conics": np.linalg.inv(covs)[:, [0, 0, 1], [0, 1, 1]],
        "depths": rng.uniform(1, 9, num),
        "opacities": np.full(num, 0.5),
        "radii_px": 3.1 * np.sqrt(shapes[:, [0, 2]]),
    }
    return Projected(**{name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()})


def test_counts_equal_the_listed_intersections():
    """Exactly: in the arithmetic of XLA, one ellipse of each of these scenes would end in another tile."""
    size = {"width": 1296, "height": 840}
    views = [scattered(seed, 20_000, **size) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *views)
    bins = jax.jit(functools.partial(bin_views, **size, capacity=1, with_slots=False))
    made = bins(stacked).num_intersections
    count = functools.partial(count_cuda, **size)
    for counts in (jax.vmap(count)(stacked), jax.lax.map(count, stacked), jnp.stack([count(v) for v in views])):
        np.testing.assert_array_equal(counts, made)
    assert jax.grad(lambda p: count(p).astype(jnp.float32), allow_int=True)(views[0]).means_px.shape == (20_000, 2)


def test_no_gaussian_has_no_intersection():
    empty = jax.tree.map(lambda x: x[:0], flat(1, opacity=0.5, sigma=1.0))
    assert count_cuda(empty, **SIZE) == 0
    assert measure_buffer(empty, **SIZE, backend="cuda") == 1024


def test_sums_of_counts_saturate():
    counts = jnp.array([[2**30] * 3, [2**30, 2**30 - 1, 0], [2**31 - 1, 0, 2**31 - 1]], jnp.int32)
    assert jax.jit(total)(counts).tolist() == [2**31 - 1] * 3
    assert total(counts[:, 1:]).tolist() == [2**31 - 1, 2**30 - 1, 2**31 - 1]


@pytest.mark.parametrize(
    "kind, width, height, cameras",
    [("giants", WIDTH, HEIGHT, 1), ("needles", WIDTH, HEIGHT, 2), ("giants", 300, 300, 2), ("needles", 4000, 2200, 2)],
)
def test_intersections_equal_those_of_xla(kind, width, height, cameras):
    """For one tile, for more tiles than a warp has lanes, and for more than 2^16 keys."""
    scale = width / WIDTH
    views = [project_splats(make_splats(kind, num=40), c) for c in range(cameras)]
    views = [
        v.replace(means_px=v.means_px * scale, covs_px=v.covs_px * scale**2, radii_px=v.radii_px * scale) for v in views
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *views)
    capacity = 2**18 if width > 1000 else 2**13
    size = {"width": width, "height": height}
    bin_all = jax.jit(functools.partial(bin_views, **size, capacity=capacity, with_slots=True))
    intersections = bin_all(stacked)
    for c, view in enumerate(views):
        # On the CPU: XLA on a GPU fuses multiply-adds and divides differently, and some needles end in another tile.
        view = jax.device_put(view, jax.devices("cpu")[0])
        tiles = jax.jit(functools.partial(bin_tiles, **size, tile_size=TILE, max_intersections=capacity))(view)
        total = int(tiles.num_intersections)
        assert tiles.num_dropped == 0 and total == intersections.num_intersections[c]
        np.testing.assert_array_equal(intersections.starts[c], tiles.starts)
        np.testing.assert_array_equal(intersections.ids[c, :total], tiles.gaussian_ids[:total])
        assert intersections.slots is not None
        begins, counts = np.asarray(intersections.begins[c]), np.asarray(intersections.counts[c])
        slots, ids = np.asarray(intersections.slots[c, :total]), np.asarray(intersections.ids[c, :total])
        assert sorted(slots) == list(range(total))
        assert ((slots >= begins[ids]) & (slots < begins[ids] + counts[ids])).all()


@pytest.mark.parametrize(
    "dtype, wide",  # wide: jax_enable_x64, which float64 needs
    [("float16", False), ("bfloat16", False), ("float16", True), ("bfloat16", True), ("float64", True)],
)
def test_inputs_are_converted_to_float32(dtype, wide):
    """Kernels do not check types: they would read wrong numbers, and beyond the end of the array."""
    with jax.enable_x64(wide):
        splats = make_splats()
        splats = type(splats)(*(x.astype(dtype) for x in splats))
        exact = type(splats)(*(jnp.asarray(x, jnp.float32) for x in splats))
        picture = lambda splats: rasterization(*splats, WIDTH, HEIGHT, max_intersections=2048, backend="cuda")[0]
        np.testing.assert_array_equal(picture(splats), picture(exact))


def test_operands_of_other_types_are_refused():
    kernel, shape = cuda_launch.Kernel("binning", "find_ranges_u16", 256), jax.ShapeDtypeStruct((3,), jnp.int32)
    with pytest.raises(TypeError, match="find_ranges_u16: operands of bfloat16 came, expected float32, int32"):
        cuda_launch.launch(kernel, [shape], jnp.zeros(6, jnp.int32), jnp.zeros(4, jnp.bfloat16), grid=(1, 1))


def break_xla(monkeypatch, *, keeps_aliases: bool = True, keeps_repeated: bool = True) -> None:
    """Breaks calls: no result uses the memory of an operand, or an operand that is passed twice becomes zeros."""
    ffi_call = jax.ffi.ffi_call

    def broken(*args, input_output_aliases=None, **options):
        call = ffi_call(*args, input_output_aliases=input_output_aliases if keeps_aliases else None, **options)

        def without_repeated(*operands, **attributes):
            seen = [any(x is y for y in operands[:i]) for i, x in enumerate(operands)]
            kept = [jnp.zeros_like(x) if again else x for x, again in zip(operands, seen, strict=True)]
            return call(*kept, **attributes)

        return call if keeps_repeated else without_repeated

    monkeypatch.setattr(jax.ffi, "ffi_call", broken)


@pytest.mark.parametrize("wrong", ["keeps_aliases", "keeps_repeated"])
def test_the_probe_tests_what_blending_needs(monkeypatch, wrong):
    """A result in the memory of an operand, and one operand passed twice. Also runs where transfers are disallowed."""
    with jax.transfer_guard("disallow"):
        cuda_launch._probe(cuda_launch.current_route())
    # Overwrite what the probe left in memory that is free now: an output that is no alias could find it there, as if kept.
    jax.block_until_ready([jnp.zeros(4) for _ in range(256)])
    break_xla(monkeypatch, **{wrong: False})
    with pytest.raises(RuntimeError, match="expected"):
        cuda_launch._probe(cuda_launch.current_route())
