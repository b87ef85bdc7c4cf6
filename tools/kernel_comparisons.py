"""Compares each CUDA kernel, values and gradients, with the oracle or with XLA: small, one line each.

On a GPU the kernels run there, else on the PTX emulator. tools/first_contact.py calls them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax.geometry import project
from bags_jax.ops.blur import stream_blur
from bags_jax.ops.rasterize import rasterize
from bags_jax.ops.rasterize.cuda.binding import rasterize as rasterize_cuda
from bags_jax.ops.rasterize.cuda.binning import bin_views
from bags_jax.ops.rasterize.tiles import bin_tiles
from bags_jax.ops.see import see
from bags_jax.ops.ssim import ssim
from bags_jax.structs import Camera, Canvas, Gaussians
from experiments.benchmarks.rasterizer import make_random_scene
from tools.ptx_emulator import emulated

SIZE = {"width": 37, "height": 29}
CAPACITY = 4096


def distance(a, b) -> float:
    """Norm of a - b relative to that of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def random_projected(num: int = 60, *, spread: float = 3.0):
    """Gaussians on a small screen."""
    scene = make_random_scene(num, SIZE["width"], SIZE["height"])
    means, quats, scales, opacities, _, viewmats, Ks = map(jnp.asarray, scene.arrays)
    camera = Camera(viewmats[0], Ks[0])
    options = {**SIZE, "near_plane": 0.01, "far_plane": 1e10, "eps_2d": 0.3, "antialiased": False}
    return project(means, quats, spread * scales, opacities, camera, **options)


def compare_lists() -> str:
    """Lists of intersections, array by array, against XLA's on the CPU."""
    cpu = jax.devices("cpu")[0]
    for spread in (0.5, 3.0, 30.0):
        projected = random_projected(spread=spread)
        with jax.default_device(cpu):
            lists = functools.partial(bin_tiles, **SIZE, tile_size=16, max_intersections=CAPACITY)
            expected = jax.jit(lists)(jax.device_put(projected, cpu))
        num = int(expected.num_intersections)
        for with_slots in (False, True):
            with emulated():
                bins = functools.partial(bin_views, **SIZE, capacity=CAPACITY, with_slots=with_slots)
                found = jax.jit(bins)(jax.tree.map(lambda x: x[None], projected))
            assert int(found.num_intersections[0]) == num, (spread, with_slots, "total")
            assert np.array_equal(found.starts[0], expected.starts), (spread, with_slots, "starts")
            assert np.array_equal(found.ids[0, :num], expected.gaussian_ids[:num]), (spread, with_slots, "ids")
    return "total, starts and ids equal"


def draw_and_differentiate(render, projected, channels: int):
    """Image, and gradients of a weighted sum of it."""
    draw = np.random.default_rng(channels)
    features = jnp.asarray(draw.normal(size=(projected.depths.shape[0], channels)), jnp.float32)
    weights = jnp.asarray(draw.normal(size=(SIZE["height"], SIZE["width"], channels)), jnp.float32)

    def total(projected, features):
        output = render(projected, features, **SIZE, max_intersections=CAPACITY)
        return jnp.sum(weights * output.colors) + jnp.sum(output.alphas), output.colors

    (_, colors), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True, allow_int=True))(
        projected, features
    )
    kept = (gradients[0].means_px, gradients[0].conics, gradients[0].opacities, gradients[1])
    return [np.asarray(x) for x in (colors, *kept)]


def compare_blending() -> str:
    """Images and gradients against plain XLA, for each number of channels, in any and in a fixed order."""
    largest = 0.0
    for channels, fixed in ((1, False), (3, False), (4, False), (4, True), (8, False)):
        for spread in (0.5, 3.0, 30.0):
            projected = random_projected(spread=spread)
            expected = draw_and_differentiate(functools.partial(rasterize, backend="xla"), projected, channels)
            with emulated():
                kernels = functools.partial(rasterize_cuda, deterministic=fixed)
                found = draw_and_differentiate(kernels, projected, channels)
            errors = [distance(a, b) for a, b in zip(found, expected, strict=True)]
            assert max(errors) < 1e-4, (channels, fixed, spread, errors)
            largest = max(largest, *errors)
    return f"largest relative difference {largest:.1e}"


def repeat_in_fixed_order() -> str:
    """Gradients in a fixed order, twice: bit for bit."""
    projected = random_projected(spread=30.0)
    with emulated():
        fixed = functools.partial(rasterize_cuda, deterministic=True)
        first, second = (draw_and_differentiate(fixed, projected, 4) for _ in range(2))
        atomic = draw_and_differentiate(rasterize_cuda, projected, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), "two runs differ"
    return f"same bits; any order differs by {max(map(distance, atomic, first)):.1e}"


def compare_blur() -> str:
    """The blur and its gradients against XLA, for each stride."""
    largest = 0.0
    for stride, side in ((1, 5), (2, 5), (3, 7), (4, 9)):
        draw, (h, w), margin = np.random.default_rng(side), (-(-29 // stride), -(-37 // stride)), 1
        shapes = ((3, 29 + 2 * margin, 37 + 2 * margin), (h, w, 6), (6, side**2), (side**2,))
        arrays = [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]

        def total(*arrays, backend, stride=stride, margin=margin):
            image, moments = stream_blur(*arrays, stride=stride, bound=2.0, margin=margin, backend=backend)
            return jnp.sum(image**2) + jnp.sum(moments)

        both = jax.value_and_grad(total, argnums=(0, 1, 2, 3))
        with jax.default_matmul_precision("highest"):
            expected = jax.jit(functools.partial(both, backend="xla"))(*arrays)
            with emulated():
                found = jax.jit(functools.partial(both, backend="cuda"))(*arrays)
        errors = list(map(distance, jax.tree.leaves(found), jax.tree.leaves(expected)))
        assert max(errors) < 2e-4, (stride, errors)
        largest = max(largest, *errors)
    return f"strides 1 to 4, largest relative difference {largest:.1e}"


def compare_similarity() -> str:
    """SSIM and its gradient against XLA."""
    draw = np.random.default_rng(0)
    image, target = (jnp.asarray(draw.random((SIZE["height"], SIZE["width"], 3)), jnp.float32) for _ in range(2))
    valid = jnp.asarray(draw.random((SIZE["height"], SIZE["width"])) < 0.8)
    both = jax.value_and_grad(ssim)
    expected = jax.jit(functools.partial(both, backend="xla"))(image, target, valid)
    with emulated():
        found = jax.jit(functools.partial(both, backend="cuda"))(image, target, valid)
    errors = list(map(distance, found, expected))
    assert max(errors) < 1e-4, errors
    return f"largest relative difference {max(errors):.1e}"


def compare_seeing() -> str:
    """What a camera sees of each Gaussian, and its gradients, against XLA."""
    draw, num = np.random.default_rng(0), 1000
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
    means = normal(num, 3) + jnp.array([[0.0, 0.0, 3.0]])
    gaussians = Gaussians(
        means, normal(num, 4), normal(num, 3) - 2.0, normal(num), normal(num, 1, 3), normal(num, 15, 3)
    )
    camera = Camera(jnp.eye(4), jnp.array([[60.0, 0.0, 32.0], [0.0, 60.0, 24.0], [0.0, 0.0, 1.0]]))
    alive, filter_3d = jnp.asarray(draw.random(num) < 0.9), jnp.full(num, 0.01)
    weights = [normal(num, width) for width in (2, 3, 1, 4)]
    canvas = Canvas(SIZE["width"], SIZE["height"], near_plane=0.2, eps_2d=0.1)

    def total(gaussians, camera, backend):
        seen = see(gaussians, alive, filter_3d, camera, canvas, sh_degree=3, backend=backend)
        parts = seen.projected.means_px, seen.projected.conics, seen.projected.opacities[:, None], seen.features
        shown = seen.projected.radii_px[:, :1] > 0
        return sum(jnp.sum(jnp.where(shown, x * weight, 0.0)) for x, weight in zip(parts, weights, strict=True))

    both = jax.value_and_grad(total, (0, 1))
    expected = jax.jit(functools.partial(both, backend="xla"))(gaussians, camera)
    with emulated():
        found = jax.jit(functools.partial(both, backend="cuda"))(gaussians, camera)
    errors = list(map(distance, jax.tree.leaves(found), jax.tree.leaves(expected)))
    assert max(errors) < 1e-3, errors
    return f"largest relative difference {max(errors):.1e}"
