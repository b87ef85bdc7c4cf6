"""What a training step costs and where the time goes, against the number of Gaussians and of pixels.

  python -m experiments.benchmarks.cost --output=cost.json

Times are medians after a warm-up; each part is compiled and timed on its own, `step` is the whole of a plain step (render,
L1 and SSIM, gradients, Adam), `blur model` what BAGS adds to it with 9 x 9 kernels.
"""

import dataclasses
import functools
import platform

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bags_jax import losses, plan
from bags_jax.blur_model.proposal_network import BlurProposalNetwork, init_network
from bags_jax.cli.launch import launch
from bags_jax.dispatch import compiler_options, most_pairs, room_for
from bags_jax.ops.rasterize import DEFAULT_TILE_SIZE, choose_backend
from bags_jax.ops.rasterize.cpu.binding import bin_pairs
from bags_jax.ops.rasterize.cuda.binning import bin_views
from bags_jax.ops.rasterize.tiles import bin_tiles
from bags_jax.ops.rasterize.tpu.kernels import TILE
from bags_jax.rendering import View, project_gaussians, render, render_blurred
from bags_jax.report.tables import markdown_table
from bags_jax.scene.initialize import init_state
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.schedule import Stage
from bags_jax.step import Objective, Recipe, train_step
from bags_jax.structs import Camera, Dataset
from configs import base
from experiments.benchmarks.arguments import counts, row_writer, sizes
from experiments.benchmarks.cloud import make_cloud
from experiments.benchmarks.provenance import provenance
from experiments.benchmarks.timing import median_ms

_GAUSSIANS = flags.DEFINE_list("gaussians", "1000,3000,10000,30000,100000", "Numbers of Gaussians, at 320 x 240.")
_SIZES = flags.DEFINE_list("sizes", "64x48,160x120,320x240,640x480", "Image sizes, with 10 000 Gaussians.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed runs, of which the median is taken.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "File to which the JSON rows are appended; default: none.")

PARTS = ("project", "bin and sort", "blend", "backward", "loss", "Adam")
TRAINED = ("means", "means_final", "quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest")
RATE = 1e-6  # of all of these: the scene is to stay what it is while it is timed


def milliseconds(recipe: Recipe, function, *args) -> float:
    """Median time of a call that is compiled as the steps of a recipe are."""
    compiled = jax.jit(function).lower(*args).compile(compiler_options=compiler_options(recipe))
    return median_ms(lambda: jax.block_until_ready(compiled(*args)), warm_up=1, timed=_REPEATS.value)


def make_case(num: int, width: int, height: int):
    """A cloud before one camera; state, dataset, recipe."""
    rng = np.random.default_rng(0)
    cloud = make_cloud(rng, num, width, height)
    rates = dataclasses.replace(plan.make_rates(base.get_config()), **dict.fromkeys(TRAINED, RATE))
    optimizers = make_optimizers(rates, restart=0, num_steps=1000)
    state = init_state(
        cloud.means.astype(np.float32),
        rng.uniform(size=(num, 3)).astype(np.float32),
        None,
        optimizers,
        capacity=num,
        num_views=1,
        opacity=0.3,
    )
    scales = np.log(cloud.sigmas)[:, None] + rng.normal(0.0, 0.3, (num, 3))
    gaussians = dataclasses.replace(
        state.gaussians,
        quats=jnp.asarray(rng.normal(size=(num, 4)), jnp.float32),
        log_scales=jnp.asarray(scales, jnp.float32),
    )
    state = dataclasses.replace(state, gaussians=gaussians)
    photo = jnp.asarray(rng.integers(0, 255, (1, height, width, 3)), jnp.uint8)
    cameras = Camera(jnp.eye(4)[None], jnp.asarray(cloud.K, jnp.float32)[None])
    dataset = Dataset(
        images=photo,
        sizes=jnp.array([[height, width]]),
        cameras=cameras,
        extent=jnp.float32(1),
        near_plane=jnp.float32(0.2),
    )
    view = View(width, height, 0)
    view = View(width, height, room_for(most_pairs(state, dataset, view), headroom=1.05))
    recipe = Recipe(Stage(0, 1000, 1.0, 0, 0), view, Objective(), optimizers, None, 1, 1, 0)
    return state, dataset, recipe


def make_binner(backend: str, view: View):
    """What makes the pairs of tile and Gaussian of one camera, as a backend does."""
    size, room = {"width": view.width, "height": view.height}, view.max_intersections
    if backend == "cuda":
        bins = functools.partial(bin_views, **size, room=room, with_slots=view.deterministic)
        return lambda projected: bins(jax.tree.map(lambda x: x[None], projected))
    binner = bin_pairs if backend == "cpu" else bin_tiles
    side = TILE if backend == "tpu" else DEFAULT_TILE_SIZE
    return functools.partial(binner, **size, tile_size=side, max_intersections=room)


def measure(num: int, width: int, height: int) -> dict:
    """Times of one case, ms."""
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
        "bin and sort": timed(make_binner(choose_backend("auto"), view), projected),
        "forward": timed(draw, state.gaussians),
        "backward": timed(lambda f, g: f(g), pull, image),
        "loss": timed(jax.grad(loss), image),
        "Adam": timed(recipe.optimizers.gaussians.update, state.gaussians, state.gaussians_opt),
        "step": timed(lambda s: train_step(jnp.int32(0), s, dataset, recipe=recipe), state),
        "blur model": measure_blur(state, camera, recipe),
    }
    times["blend"] = times.pop("forward") - times["project"] - times["bin and sort"]
    pairs = most_pairs(state, dataset, view)
    return {"gaussians": num, "width": width, "height": height, "pairs": pairs, "ms": times}


def measure_blur(state, camera: Camera, recipe: Recipe) -> float:
    """Network and blur, forward and backward, ms."""
    sizes = base.blur()
    network = BlurProposalNetwork(
        2, (9,), sizes["width"], 32, sizes["conv_width"], sizes["feature_width"], strides=(2,)
    )
    params = init_network(network, jax.random.key(0))
    sharp = jax.jit(lambda s: render(s.gaussians, s.alive, s.filter_3d, camera, view=recipe.view))(state)
    return milliseconds(
        recipe,
        jax.grad(lambda p: jnp.sum(render_blurred(network, p, jnp.int32(0), sharp, head=0)[0] ** 2)),
        params,
    )


def main() -> None:
    """Measures every case and prints the tables."""
    cases = [(num, 320, 240) for num in counts(_GAUSSIANS)] + [(10_000, *size) for size in sizes(_SIZES)]
    write, lines = row_writer(_OUTPUT), []
    for case in cases:
        row = measure(*case)
        write({**row, **provenance(), "machine": platform.machine()})
        ms = row["ms"]
        shares = [f"{100 * ms[part] / sum(ms[p] for p in PARTS):.0f} %" for part in PARTS]
        lines.append(
            [
                str(case[0]),
                f"{case[1]} x {case[2]}",
                str(row["pairs"]),
                f"{ms['step']:.1f}",
                *shares,
                f"{ms['blur model']:.1f}",
            ]
        )
        print(f"{case[0]} Gaussians, {case[1]} x {case[2]}: {ms['step']:.1f} ms", flush=True)
    print(markdown_table(["Gaussians", "image", "pairs", "step, ms", *PARTS, "blur model, ms"], lines))


if __name__ == "__main__":
    launch(main)
