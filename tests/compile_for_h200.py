"""Compiles `rasterization` with backend="cuda", forward and backward, or a whole training step, for an H200 that is not there.

  python tests/compile_for_h200.py rasterization CAMERAS DETERMINISTIC
  python tests/compile_for_h200.py step WIDTH HEIGHT STRIDE DETERMINISTIC

Prints a JSON row: how long it took, what the program calls, how much it launches, where it waits for its host, and the memory that it needs.

Needs the CUDA wheels of `make gpu-check` but neither a GPU nor a driver: XLA takes the GPU from golden/h200.txtpb.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import sys
import time
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

import jax
import jax.numpy as jnp
from jax.experimental import topologies

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bags_jax import plan
from bags_jax.cuda import launch
from bags_jax.density import grow
from bags_jax.programs import compiler_options
from bags_jax.rasterize import rasterization
from bags_jax.step import train_steps
from bags_jax.train import first_state, make_job
from configs import procedural

H200 = pathlib.Path(__file__).parent / "golden" / "h200.txtpb"
NUM, WIDTH, HEIGHT, ROOM = 1_000_000, 1296, 840, 4_000_000
TRIPS = "known_trip_count"
ON_A_GPU = mock.patch.object(jax, "default_backend", lambda: "gpu")  # what is traced within it, is for one
NO_LAUNCH = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"}


def loss(means, quats, scales, opacities, colors, viewmats, Ks, deterministic):
    image, alphas, meta = rasterization(
        *(means, quats, scales, opacities, colors, viewmats, Ks, WIDTH, HEIGHT),
        render_mode="RGB+D",
        max_intersections=ROOM,
        backend="cuda",
        deterministic=deterministic,
    )
    return jnp.sum(image) + jnp.sum(alphas), meta["num_dropped"]


def on_h200(shapes):
    """Arrays of these shapes on the one H200 of golden/h200.txtpb."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=H200.read_text(), topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def count_launches(text: str) -> int:
    """What a program starts on the GPU, one after the other: kernels, copies and library calls, as often as its loops go round.

    A loop whose length is not known in advance counts once.
    """
    computations = {}
    for part in re.split(r"\n(?=\S)", text):
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(", part):
            computations["ENTRY" if head[1] else head[2]] = part

    def launches(name: str) -> int:
        total = 0
        for line in computations[name].splitlines():
            found = re.match(r"\s+(?:ROOT )?%[\w.-]+ = .*? ([\w-]+)\(", line)
            if found and found[1] == "while":
                body, trips = re.search(r"body=%([\w.-]+)", line), re.search(rf'{TRIPS}":{{"n":"(\d+)"', line)
                assert body
                total += launches(body[1]) * (int(trips[1]) if trips else 1)
            elif found and found[1] not in NO_LAUNCH:
                total += 1
        return total

    return launches("ENTRY")


def compile_for_h200(function, *inputs, options: dict[str, bool | str] | None = None) -> dict:
    """Compiles a function of shapes; how long it took, what it calls, and the memory it needs."""
    start = time.perf_counter()
    with launch.forced_route(launch.XLA), ON_A_GPU:
        lowered = jax.jit(function).trace(*on_h200(inputs)).lower(lowering_platforms=("cuda",))
    compiled = lowered.compile(compiler_options=options)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return {
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - start, 1),
        "calls": collections.Counter(re.findall(r'custom_call_target="([^"]*)"', text)),
        "launches": count_launches(text),
        "waits": sum(
            " conditional(" in line or (" while(" in line and TRIPS not in line) for line in text.splitlines()
        ),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def rasterization_row(cameras: int, deterministic: bool) -> dict:
    """Value and gradient of `rasterization` for `cameras` cameras."""
    shapes = [(NUM, 3), (NUM, 4), (NUM, 3), (NUM,), (NUM, 3), (cameras, 4, 4), (cameras, 3, 3)]
    gradient = jax.value_and_grad(functools.partial(loss, deterministic=deterministic), tuple(range(7)), has_aux=True)
    return compile_for_h200(gradient, *[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])


def step_row(width: int, height: int, stride: int, deterministic: bool) -> dict:
    """The last stage of a training of BAGS on photographs of this size, kernels of 17 x 17, a million Gaussians."""
    config = procedural.get_config("motion")  # a small scene, whose shapes are exchanged
    config.sh_degree, config.blur.kernel_sizes, config.blur.strides = 3, (5, 9, 17), (1, 1, stride)
    config.num_devices = config.views_per_step = 1
    config.deterministic = deterministic
    job = make_job(config)
    state = jax.eval_shape(lambda: grow(first_state(job), NUM))
    dataset = job.dataset(1.0)
    images = jax.ShapeDtypeStruct((dataset.images.shape[0], height, width, 3), jnp.uint8)
    dataset = dataclasses.replace(dataset, images=images)
    recipe = job.recipe(job.stages[-1], dataset, ROOM)
    view = dataclasses.replace(recipe.view, backend="cuda")
    recipe = dataclasses.replace(recipe, view=view, loop_length=plan.loop_length(config))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    step = functools.partial(train_steps, recipe=recipe)
    with ON_A_GPU:
        options = compiler_options(recipe)
    row = compile_for_h200(step, number, state, dataset, number, number, options=options)
    return {**row, "launches": row["launches"] // recipe.loop_length}  # of a step


if __name__ == "__main__":
    rows = {"rasterization": rasterization_row, "step": step_row}
    what, *sizes, deterministic = sys.argv[1:]
    print(json.dumps(rows[what](*map(int, sizes), deterministic=bool(int(deterministic)))))
