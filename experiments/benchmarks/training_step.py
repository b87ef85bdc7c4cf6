"""What a whole step of plain splatting costs, in wall time and in CPU time: the figures to hold against other trainers.

  python -m experiments.benchmarks.training_step --images=132x236,266x473 --counts=10000,50000

A step is render, L1 and SSIM, gradients, Adam on every group, with SH degree 3. CPU seconds are those of all threads of
the process: on a machine that others use too, they say more than wall time. compile_s is tracing and compilation of the step.
--beside=gsplat times a step of gsplat and torch on the same scene, where they and a GPU are there.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.dispatch import compiler_options, most_pairs
from bags_jax.errors import UserError
from bags_jax.ops.rasterize import choose_backend, rasterize
from bags_jax.rendering import project_gaussians
from bags_jax.step import Recipe, train_steps
from bags_jax.structs import Dataset, TrainState
from experiments.benchmarks import gsplat_step
from experiments.benchmarks.arguments import counts, row_writer, sizes
from experiments.benchmarks.cost import RATE, make_case
from experiments.benchmarks.provenance import provenance
from experiments.benchmarks.timing import times_in_turn

_GAUSSIANS = flags.DEFINE_list("counts", "10000,50000", "Numbers of Gaussians.")
_SIZES = flags.DEFINE_list("images", "132x236,266x473", "Image sizes, px.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps a timing: one dispatch, as in training.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 5, "Timings, of which the median is taken.", lower_bound=1)
_BACKEND = flags.DEFINE_list("backend", "auto", "Rasterizers: auto, xla, cpu. Several are timed in turn.")
_BESIDE = flags.DEFINE_enum("beside", "", ["", "gsplat"], "Another trainer, whose step takes turns with ours.")
_ROWS = flags.DEFINE_string("rows", "", "File to which the JSON rows are appended; default: none.")


def blended_per_pixel(state: TrainState, dataset: Dataset, recipe: Recipe) -> float:
    """Gaussians that are blended into a pixel, on average over a lattice of 7 x 7 pixels.

    The gradient of a pixel's colour with regard to the colours of the Gaussians is its weights: positive where it is blended.
    """
    view, camera = recipe.view, jax.tree.map(lambda x: x[0], dataset.cameras)
    projected = project_gaussians(state.gaussians, state.alive, state.filter_3d, camera, view)

    def color(ones, y, x):
        room = view.max_intersections
        image = rasterize(projected, ones, width=view.width, height=view.height, max_intersections=room)
        return image.colors[y, x, 0]

    weights = jax.jit(jax.grad(color))
    rows, columns = (np.linspace(0, side - 1, 7, dtype=int) for side in (view.height, view.width))
    ones = jnp.ones((state.alive.shape[0], 1))
    return float(np.mean([jnp.sum(weights(ones, y, x) > 0) for y in rows for x in columns]))


def our_step(state: TrainState, dataset: Dataset, recipe: Recipe) -> Callable[[], None]:
    """A function that takes --steps steps in one dispatch, and returns when they are done."""
    own = jax.tree.map(jnp.copy, state)
    recipe = dataclasses.replace(recipe, loop_length=_STEPS.value)
    compiled = jax.jit(functools.partial(train_steps, recipe=recipe), donate_argnums=1)
    rank = step = jnp.int32(0)
    compiled = compiled.lower(rank, own, dataset, step, step).compile(compiler_options(recipe))

    def run():
        nonlocal own, step
        stop = step + _STEPS.value
        own, metrics = compiled(rank, own, dataset, step, stop)
        assert int(metrics["step"]) == stop, metrics
        step = stop

    return run


def gsplat_steps(state: TrainState, dataset: Dataset, recipe: Recipe) -> Callable[[], None]:
    """The same by gsplat."""
    step = gsplat_step.make_step(state, dataset, recipe, rate=RATE)

    def run():
        for _ in range(_STEPS.value):
            step()
        gsplat_step.synchronize()

    return run


def measure(num: int, width: int, height: int, backends: list[str]) -> list[dict]:
    """One row a trainer; they take turns."""
    state, dataset, recipe = make_case(num, width, height)
    pairs, blended = most_pairs(state, dataset, recipe.view), round(blended_per_pixel(state, dataset, recipe), 1)
    size = {"gaussians": num, "width": width, "height": height, "pairs": pairs, "blended": blended}
    runs, compile_s = {}, {}
    for name in backends + [_BESIDE.value] * bool(_BESIDE.value):
        start = time.perf_counter()
        if name == "gsplat":
            runs[name] = gsplat_steps(state, dataset, recipe)
        else:
            view = dataclasses.replace(recipe.view, backend=name)
            runs[name] = our_step(state, dataset, dataclasses.replace(recipe, view=view))
        compile_s[name] = round(time.perf_counter() - start, 1)
    rows = []
    for name, (wall, cpu) in times_in_turn(runs, warm_up=1, timed=_TURNS.value).items():
        took = {"wall_s": round(wall / _STEPS.value, 5), "cpu_s": round(cpu / _STEPS.value, 5)}
        rows.append({**size, "backend": name, **took, "compile_s": compile_s[name]})
    for row in rows:
        if _BESIDE.value:
            row[f"{_BESIDE.value}_over_this"] = round(rows[-1]["wall_s"] / row["wall_s"], 2)
    return rows


def backends_of(names: list[str]) -> list[str]:
    """What the names stand for on this machine.

    Raises:
      UserError: an unknown name, or a rasterizer that this machine lacks.
    """
    try:
        return [choose_backend(name) for name in names]
    except ValueError as error:
        raise UserError(f"--backend: {error}") from error


def main() -> None:
    """Measures every case and prints its rows."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX looks: torch wants memory too
    machine = {**provenance(), "cores": len(os.sched_getaffinity(0))}
    backends, write = backends_of(_BACKEND.value), row_writer(_ROWS)
    if _BESIDE.value:
        gsplat_step.check_gsplat()
    for width, height in sizes(_SIZES):
        for num in counts(_GAUSSIANS):
            for row in measure(num, width, height, backends):
                print(json.dumps({**row, **machine}), flush=True)
                write({**row, **machine})


if __name__ == "__main__":
    launch(main)
