"""Times the parts of a training step, for several numbers of Gaussians and image sizes.

  python -m experiments.benchmarks.cost --rows=cost.jsonl

Prints a Markdown table: the time of a step, and the share of each part. Times are medians after a warm-up. Each part is
compiled and timed on its own. `step` is a plain step (render, L1 and SSIM, gradients, Adam). `blur model` is the time
that BAGS adds to it with 9 x 9 kernels.
"""

import functools
import platform

import jax
import jax.numpy as jnp
from absl import flags

from bags_jax import losses
from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.cli.launch import launch
from bags_jax.ops.backends import choose
from bags_jax.ops.rasterize.cpu.binding import bin_intersections
from bags_jax.ops.rasterize.cuda.binning import bin_views
from bags_jax.ops.rasterize.tiles import bin_tiles, default_tile_size
from bags_jax.programs import compiler_options, largest_count
from bags_jax.rendering import View, project_gaussians, render, render_blurred
from bags_jax.report.tables import markdown_table
from bags_jax.schedule import Stage
from bags_jax.settings import Blur
from bags_jax.step import Recipe, train_step
from bags_jax.structs import Camera
from experiments.benchmarks.arguments import parse_counts, parse_sizes
from experiments.benchmarks.cases import make_case
from experiments.benchmarks.rows import open_rows, provenance
from experiments.benchmarks.timing import median_ms

_GAUSSIANS = flags.DEFINE_list("gaussians", "1000,3000,10000,30000,100000", "Numbers of Gaussians, at 320 x 240.")
_SIZES = flags.DEFINE_list("sizes", "64x48,160x120,320x240,640x480", "Image sizes, with 10 000 Gaussians.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Number of timed runs; the median is reported.", lower_bound=1)
_ROWS = flags.DEFINE_string("rows", "", "File to which JSON rows are appended; empty: none.")

PARTS = ("project", "bin and sort", "blend", "backward", "loss", "Adam")


def milliseconds(recipe: Recipe, function, *args) -> float:
    """Compiles a function with the options of a training step, and returns its median time, ms."""
    compiled = jax.jit(function).lower(*args).compile(compiler_options=compiler_options(recipe))
    return median_ms(lambda: jax.block_until_ready(compiled(*args)), warm_up=1, timed=_REPEATS.value)


def make_binner(backend: str, view: View):
    """Returns the function that lists and sorts the intersections of one camera, for a backend."""
    size, capacity = {"width": view.width, "height": view.height}, view.max_intersections
    if backend == "cuda":
        bins = functools.partial(bin_views, **size, capacity=capacity, with_slots=view.deterministic)
        return lambda projected: bins(jax.tree.map(lambda x: x[None], projected))
    binner = bin_intersections if backend == "cpu" else bin_tiles
    return functools.partial(binner, **size, tile_size=default_tile_size(backend), max_intersections=capacity)


def measure(num: int, width: int, height: int) -> dict:
    """Times the parts of one case; returns its row, times in ms."""
    state, dataset, recipe = make_case(num, width, height)
    view, camera = recipe.view, jax.tree.map(lambda x: x[0], dataset.cameras)
    project = functools.partial(project_gaussians, camera=camera, view=view)
    projected = jax.jit(project)(state.gaussians, state.alive, state.filter_3d)
    timed = functools.partial(milliseconds, recipe)

    def draw(gaussians):
        return render(gaussians, state.alive, state.filter_3d, camera, view=view).image

    photo = dataset.images[0].astype(jnp.float32) / 255.0
    valid = jnp.ones((height, width), bool)

    def loss(image):
        return losses.l1(image, photo, valid) + losses.ssim(image, photo, valid)

    image, pull = jax.jit(lambda g: jax.vjp(draw, g))(state.gaussians)
    times = {
        "project": timed(project, state.gaussians, state.alive, state.filter_3d),
        "bin and sort": timed(make_binner(choose("rasterize"), view), projected),
        "forward": timed(draw, state.gaussians),
        "backward": timed(lambda f, g: f(g), pull, image),
        "loss": timed(jax.grad(loss), image),
        "Adam": timed(recipe.optimizers.gaussians.update, state.gaussians, state.gaussians_opt),
        "step": timed(lambda s: train_step(jnp.int32(0), s, dataset, recipe=recipe), state),
        "blur model": measure_blur(state, camera, recipe),
    }
    times["blend"] = times.pop("forward") - times["project"] - times["bin and sort"]
    intersections = largest_count(state, dataset, view)
    return {"gaussians": num, "width": width, "height": height, "intersections": intersections, "ms": times}


def measure_blur(state, camera: Camera, recipe: Recipe) -> float:
    """Time of the blur network and the blur, forward and backward, ms."""
    sizes, stage = Blur(), Stage(0, 1000, 1.0, kernel_size=9, head=0, stride=2)
    network = BlurProposalNetwork(2, (9,), sizes.width, 32, sizes.conv_width, sizes.feature_width)
    params = network.init_params(jax.random.key(0))
    sharp = jax.jit(lambda s: render(s.gaussians, s.alive, s.filter_3d, camera, view=recipe.view))(state)
    return milliseconds(
        recipe,
        jax.grad(lambda p: jnp.sum(render_blurred(network, p, jnp.int32(0), sharp, stage=stage)[0] ** 2)),
        params,
    )


def main() -> None:
    """Measures every case and prints the tables."""
    cases = [(num, 320, 240) for num in parse_counts(_GAUSSIANS)] + [(10_000, *size) for size in parse_sizes(_SIZES)]
    write, lines = open_rows(_ROWS), []
    for case in cases:
        row = measure(*case)
        write({**row, **provenance(), "machine": platform.machine()})
        ms = row["ms"]
        shares = [f"{100 * ms[part] / sum(ms[p] for p in PARTS):.0f} %" for part in PARTS]
        lines.append([str(case[0]), f"{case[1]} x {case[2]}", str(row["intersections"])])
        lines[-1] += [f"{ms['step']:.1f}", *shares, f"{ms['blur model']:.1f}"]
        print(f"{case[0]} Gaussians, {case[1]} x {case[2]}: {ms['step']:.1f} ms", flush=True)
    print(markdown_table(["Gaussians", "image", "intersections", "step, ms", *PARTS, "blur model, ms"], lines))


if __name__ == "__main__":
    launch(main)
