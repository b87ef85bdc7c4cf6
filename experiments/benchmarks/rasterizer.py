"""Times `rasterization`, forward and forward + backward, optionally beside gsplat's.

  python -m experiments.benchmarks.rasterizer --scenes=1000000:1296x840,garden:648x420 --backends=auto --beside=gsplat

Prints one JSON row per scene and backend. A scene is a number of random Gaussians, or `garden` (the points of a
Mip-NeRF 360 scene with random scales, --garden=.../test_garden.npz), and an image size. The backward pass computes the
gradients of all Gaussians and of the camera pose. Times are medians, from the call until the device has the result.
"""

import functools
import importlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.spatial import KDTree

from bags_jax.cli.launch import launch
from bags_jax.errors import UserError
from bags_jax.metrics import psnr_of_mse
from bags_jax.ops.backends import choose
from bags_jax.splatting import rasterization
from experiments.benchmarks.cases import make_cloud
from experiments.benchmarks.gsplat_step import check_gsplat
from experiments.benchmarks.rows import open_rows, provenance
from experiments.benchmarks.timing import median_ms

SYNTHETIC = "100000:1296x840,500000:1296x840,1000000:1296x840,3000000:1296x840"
_SCENES = flags.DEFINE_list("scenes", f"{SYNTHETIC},1000000:648x420,1000000:1920x1080", "NUMBER:WxH or garden:WxH.")
_BACKENDS = flags.DEFINE_list("backends", "auto", "Backends of `rasterize`; 'cuda!' has deterministic gradients.")
_BESIDE = flags.DEFINE_enum("beside", "", ["", "gsplat"], "Another rasterizer to time on the same inputs.")
_GARDEN = flags.DEFINE_string("garden", "../shared/data/test_garden.npz", "The points of `garden` scenes.")
_TIMED = flags.DEFINE_integer("timed", 50, "Number of timed runs; the median is reported.", lower_bound=1)
_WARM_UP = flags.DEFINE_integer("warm_up", 10, "Untimed runs before them.", lower_bound=1)
_ROWS = flags.DEFINE_string("rows", "", "File to which JSON rows are appended; empty: none.")
Write = Callable[[dict], None]


class Scene(NamedTuple):
    """The arrays that `rasterization` takes, in its order, for one camera."""

    arrays: tuple[np.ndarray, ...]
    width: int
    height: int


class Result(NamedTuple):
    """Image and times of one rasterizer."""

    image: np.ndarray
    forward_ms: float
    both_ms: float
    intersections: int


def make_scene(text: str) -> Scene:
    """Makes the scene NUMBER:WxH or garden:WxH."""
    name, _, size = text.partition(":")
    try:
        width, height = (int(x) for x in size.split("x"))
        num = 0 if name == "garden" else int(name)
    except ValueError as error:
        raise UserError(
            f"--scenes has {text!r}, expected a number of Gaussians or garden, then :WIDTHxHEIGHT"
        ) from error
    return make_random_scene(num, width, height) if num else load_garden(width, height)


def make_random_scene(num: int, width: int, height: int) -> Scene:
    """A random cloud of Gaussians."""
    rng = np.random.default_rng(0)
    means, sigmas, K = make_cloud(rng, num, width, height)
    scales = sigmas[:, None] * np.exp(rng.normal(0.0, 0.3, (num, 3)))
    arrays = means, rng.normal(size=(num, 4)), scales, rng.uniform(0.1, 0.9, num), rng.uniform(size=(num, 3))
    return Scene(tuple(x.astype(np.float32) for x in (*arrays, np.eye(4)[None], K[None])), width, height)


def load_garden(width: int, height: int) -> Scene:
    """The garden's points and first camera. A point's scale is the mean distance to its three nearest neighbours."""
    path = pathlib.Path(_GARDEN.value)
    if not path.is_file():
        raise UserError(f"no {path}: set --garden to the file of the garden's points, or remove garden from --scenes")
    data = np.load(path)
    points, rng = data["means3d"], np.random.default_rng(0)
    apart = KDTree(points).query(points, k=4)[0][:, 1:].mean(axis=1)
    scales = np.clip(apart, *np.quantile(apart, [0.01, 0.99]))[:, None] * np.exp(rng.normal(0.0, 0.3, points.shape))
    zoom = np.array([width / int(data["width"]), height / int(data["height"]), 1.0])
    colors, opacities = data["colors"] / 255.0, rng.uniform(0.1, 0.9, len(points))
    arrays = points, rng.normal(size=(len(points), 4)), scales, opacities, colors, data["viewmats"][:1]
    return Scene(tuple(x.astype(np.float32) for x in (*arrays, data["Ks"][:1] * zoom[None, :, None])), width, height)


def measure_ms(run: Callable[[], None]) -> float:
    """Median time of one call, ms."""
    return median_ms(run, warm_up=_WARM_UP.value, timed=_TIMED.value)


def measure_ours(scene: Scene, backend: str) -> Result:
    """Times `rasterization` under jit, with a buffer just large enough for the intersections (a multiple of 1024)."""
    options = {"backend": backend.rstrip("!"), "deterministic": backend.endswith("!")}
    arrays = tuple(jnp.asarray(x) for x in scene.arrays)

    def draw(*arrays, max_intersections=None):
        inputs: tuple[Any, ...] = (*arrays, scene.width, scene.height)
        return rasterization(*inputs, max_intersections=max_intersections, **options)

    intersections = int(draw(*arrays)[2]["num_intersections"].max())
    draw = functools.partial(draw, max_intersections=-(-intersections // 1024) * 1024)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(1, scene.height, scene.width, 3)), jnp.float32)
    forward = jax.jit(lambda *x: draw(*x)[0])
    both = jax.jit(jax.grad(lambda *x: jnp.sum(draw(*x)[0] * weights), argnums=tuple(range(6))))
    image = np.asarray(forward(*arrays))
    forward_ms, both_ms = (measure_ms(lambda run=run: jax.block_until_ready(run(*arrays))) for run in (forward, both))
    return Result(image, forward_ms, both_ms, intersections)


def measure_gsplat(scene: Scene) -> Result:
    """Times gsplat's `rasterization` on the same inputs."""
    # Imported by name: gsplat and torch are optional.
    gsplat, torch = importlib.import_module("gsplat"), importlib.import_module("torch")
    tensors = [torch.tensor(x, device="cuda", requires_grad=i < 6) for i, x in enumerate(scene.arrays)]
    random = np.random.default_rng(1).normal(size=(1, scene.height, scene.width, 3))
    weights = torch.tensor(random.astype(np.float32), device="cuda")

    def draw():
        return gsplat.rasterization(*tensors, scene.width, scene.height, packed=False)

    def forward():
        with torch.no_grad():
            draw()
        torch.cuda.synchronize()

    def both():
        for tensor in tensors:
            tensor.grad = None
        (draw()[0] * weights).sum().backward()
        torch.cuda.synchronize()

    image, _, meta = draw()
    intersections = int(meta["flatten_ids"].numel())
    return Result(image.detach().cpu().numpy(), measure_ms(forward), measure_ms(both), intersections)


def report(text: str, scene: Scene, name: str, result: Result, other: Result | None, write: Write) -> None:
    """Prints a row and appends it to the file of rows."""
    row = {"scene": text, "gaussians": len(scene.arrays[0]), "backend": name, "intersections": result.intersections}
    row |= {"forward_ms": round(result.forward_ms, 3), "both_ms": round(result.both_ms, 3)}
    if other:
        row |= {
            "psnr_to_gsplat": round(psnr_of_mse(float(np.mean((result.image.astype(float) - other.image) ** 2))), 1),
            "gsplat_forward_over_ours": round(other.forward_ms / result.forward_ms, 2),
            "gsplat_both_over_ours": round(other.both_ms / result.both_ms, 2),
        }
    row |= provenance()
    print(json.dumps(row), flush=True)
    write(row)


def main() -> None:
    """Measures every scene with every rasterizer."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # set before JAX starts: torch needs memory too
    backends = [(choose("rasterize", name.rstrip("!")) + "!" * name.endswith("!")) for name in _BACKENDS.value]
    if _BESIDE.value:
        check_gsplat()
    write = open_rows(_ROWS)
    for text in _SCENES.value:
        scene = make_scene(text)
        other = measure_gsplat(scene) if _BESIDE.value else None
        if other:
            report(text, scene, "gsplat", other, None, write)
        for backend in backends:
            report(text, scene, backend, measure_ours(scene, backend), other, write)


if __name__ == "__main__":
    launch(main)
