"""Times whole training steps of plain splatting, for comparison with other trainers.

  python -m experiments.benchmarks.training_step --images=132x236,266x473 --counts=10000,50000

Prints one JSON row per case and backend. A step is render, L1 and SSIM, gradients, and Adam on every group, with SH
degree 3. cpu_s sums all threads of the process: on a shared machine it varies less than wall_s. compile_s is the time
to trace and compile. --beside=gsplat also times a step of gsplat and torch on the same scene (needs both, and a GPU).
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
from bags_jax.errors import UserError
from bags_jax.ops.backends import choose
from bags_jax.ops.rasterize import rasterize
from bags_jax.programs import compiler_options, largest_count
from bags_jax.rendering import project_gaussians
from bags_jax.step import Recipe, train_steps
from bags_jax.structs import Dataset, TrainState
from experiments.benchmarks import gsplat_step
from experiments.benchmarks.arguments import parse_counts, parse_sizes
from experiments.benchmarks.cases import RATE, make_case
from experiments.benchmarks.rows import open_rows, provenance
from experiments.benchmarks.timing import time_in_turn

_GAUSSIANS = flags.DEFINE_list("counts", "10000,50000", "Numbers of Gaussians.")
_SIZES = flags.DEFINE_list("images", "132x236,266x473", "Image sizes, px.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps per timing: one dispatch, as in training.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 5, "Number of timings; the median is reported.", lower_bound=1)
_BACKEND = flags.DEFINE_list("backend", "auto", "Rasterizers: auto, xla, cpu. Several alternate.")
_BESIDE = flags.DEFINE_enum("beside", "", ["", "gsplat"], "Another trainer; its timings alternate with ours.")
_ROWS = flags.DEFINE_string("rows", "", "File to which JSON rows are appended; empty: none.")


def count_blended(state: TrainState, dataset: Dataset, recipe: Recipe) -> float:
    """Mean number of Gaussians blended into a pixel, over a lattice of 7 x 7 pixels.

    The gradient of a pixel's colour with respect to the Gaussians' colours is their blending weights: > 0 if blended.
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


def compile_our_steps(state: TrainState, dataset: Dataset, recipe: Recipe) -> Callable[[], None]:
    """Returns a function that runs --steps steps in one dispatch and waits for them."""
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


def make_gsplat_steps(state: TrainState, dataset: Dataset, recipe: Recipe) -> Callable[[], None]:
    """Returns a function that runs --steps steps of gsplat and waits for them."""
    step = gsplat_step.make_step(state, dataset, recipe, rate=RATE)

    def run():
        for _ in range(_STEPS.value):
            step()
        gsplat_step.synchronize()

    return run


def measure(num: int, width: int, height: int, backends: list[str]) -> list[dict]:
    """Times all trainers in turn; returns one row per trainer."""
    state, dataset, recipe = make_case(num, width, height)
    size: dict[str, float] = {"gaussians": num, "width": width, "height": height}
    size["intersections"] = largest_count(state, dataset, recipe.view)
    size["blended"] = round(count_blended(state, dataset, recipe), 1)
    runs, compile_s = {}, {}
    for name in backends + [_BESIDE.value] * bool(_BESIDE.value):
        start = time.perf_counter()
        if name == "gsplat":
            runs[name] = make_gsplat_steps(state, dataset, recipe)
        else:
            view = dataclasses.replace(recipe.view, backend=name)
            runs[name] = compile_our_steps(state, dataset, dataclasses.replace(recipe, view=view))
        compile_s[name] = round(time.perf_counter() - start, 1)
    rows = []
    for name, (wall, cpu) in time_in_turn(runs, warm_up=1, timed=_TURNS.value).items():
        took = {"wall_s": round(wall / _STEPS.value, 5), "cpu_s": round(cpu / _STEPS.value, 5)}
        rows.append({**size, "backend": name, **took, "compile_s": compile_s[name]})
    for row in rows:
        if _BESIDE.value:
            row[f"{_BESIDE.value}_over_this"] = round(rows[-1]["wall_s"] / row["wall_s"], 2)
    return rows


def choose_backends(names: list[str]) -> list[str]:
    """Resolves "auto" for this machine.

    Raises:
      UserError: an unknown name, or a rasterizer that this machine lacks.
    """
    try:
        return [choose("rasterize", name) for name in names]
    except ValueError as error:
        raise UserError(f"--backend: {error}") from error


def main() -> None:
    """Measures every case and prints its rows."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # set before JAX starts: torch needs memory too
    machine = {**provenance(), "cores": len(os.sched_getaffinity(0))}
    backends, write = choose_backends(_BACKEND.value), open_rows(_ROWS)
    if _BESIDE.value:
        gsplat_step.check_gsplat()
    for width, height in parse_sizes(_SIZES):
        for num in parse_counts(_GAUSSIANS):
            for row in measure(num, width, height, backends):
                print(json.dumps({**row, **machine}), flush=True)
                write({**row, **machine})


if __name__ == "__main__":
    launch(main)
