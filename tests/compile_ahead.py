"""Compiles `rasterization`, forward and backward, or a whole training step, for an accelerator that this machine lacks.

  python tests/compile_ahead.py MACHINE rasterization CAMERAS DETERMINISTIC
  python tests/compile_ahead.py MACHINE step WIDTH HEIGHT STRIDE DETERMINISTIC DEVICES [GAUSSIANS]
  python tests/compile_ahead.py MACHINE split GAUSSIANS SENT WIDTH HEIGHT DEVICES
  python tests/compile_ahead.py MACHINE between

MACHINE is h200 or v5e. Prints a JSON row: compile time, custom calls, launches, bytes that they move, waits for the host,
exchanges between devices, and memory of each device. $COMPILED_TEXT is a file that the compiled program goes to, for
experiments/benchmarks/traffic.py. "step" is one of BAGS; STRIDE 0: of plain splatting, poses not refined. "split" compiles a step with Gaussians that are split over the devices, each of which
sends up to SENT visible ones to each other (0: all). "between" compiles the operations of training between steps.

Needs the compilers that `make gpu-check` or `make tpu-check` install, but no accelerator and no driver: XLA reads the
GPU from golden/h200.txtpb, and knows TPU v5e chips.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
# Otherwise libtpu asks a metadata server of the cloud for the machine.
os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_ACCELERATOR_TYPE="v5litepod-4")
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # uses no chip

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bags_jax import parallel, programs
from bags_jax.config import read_config
from bags_jax.data.pyramid import make_dataset
from bags_jax.dispatch import make_recipe
from bags_jax.job import first_state, make_job
from bags_jax.ops.rasterize.tpu import binding as tpu
from bags_jax.ops.toolchain import cuda_launch
from bags_jax.rendering import render
from bags_jax.scene.density import Thresholds
from bags_jax.scene.initialize import with_optimizers
from bags_jax.scene.rows import grow, map_rows, row_axes
from bags_jax.shards import Shards
from bags_jax.splatting import rasterization
from bags_jax.step import train_steps
from bags_jax.training import make_job_optimizers
from configs import procedural
from experiments.benchmarks.traffic import launches

H200 = pathlib.Path(__file__).parent / "golden" / "h200.txtpb"
MAX_DEVICES = 8
NUM, WIDTH, HEIGHT, BUFFER = 1_000_000, 1296, 840, 4_000_000
TRIPS = "known_trip_count"


class Machine(NamedTuple):
    """An accelerator to compile for."""

    platform: str  # name for lowering
    backend: str  # name of jax.default_backend()
    topology: Callable[[], Any]  # description of its devices

    def devices(self, num: int) -> list:
        """Returns `num` devices of one host."""
        return list(self.topology().devices)[:num]

    @contextlib.contextmanager
    def here(self, num: int):
        """Within this context programs are traced for this machine with `num` devices."""
        devices = self.devices(num)
        with (
            cuda_launch.forced_route(cuda_launch.XLA) if self.platform == "cuda" else contextlib.nullcontext(),
            mock.patch.object(tpu, "_try", lambda: ""),
            mock.patch.object(jax, "default_backend", lambda: self.backend),
            mock.patch.object(jax, "local_devices", lambda: devices),
        ):
            yield

    def place(self, shapes, num: int = 1, *, axes: tuple[str, ...] = ()):
        """Returns arrays of these shapes, replicated on every device, or sharded along some axes."""
        sharding = jax.sharding.NamedSharding(
            jax.sharding.Mesh(np.array(self.devices(num)), (parallel.AXIS,)), jax.sharding.PartitionSpec(*axes)
        )
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _gpus():
    return topologies.get_topology_desc(platform="cuda", target_config=H200.read_text(), topology=f"1x1x{MAX_DEVICES}")


def _tpus():
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")


MACHINES = {
    "h200": Machine("cuda", "gpu", functools.cache(_gpus)),
    "v5e": Machine("tpu", "tpu", functools.cache(_tpus)),
}


def compile_ahead(lowered, options: dict[str, bool | str] | None = None) -> dict:
    """Compiles a lowered program. Returns compile time, custom calls, launches, their bytes, and memory."""
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if path := os.environ.get("COMPILED_TEXT"):
        pathlib.Path(path).write_text(text)
    launched = launches(text)
    return {
        "jax": jax.__version__,
        "seconds": round(time.perf_counter() - start, 1),
        "calls": collections.Counter(re.findall(r'custom_call_target="([^"]*)"', text)),
        "launches": sum(each.turns for each in launched),
        "moved_bytes": sum(each.bytes for each in launched),
        "waits": sum(
            " conditional(" in line or (" while(" in line and TRIPS not in line) for line in text.splitlines()
        ),
        "exchanges": len(re.findall(r" all-reduce(?:-start)?\(", text)),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def loss(means, quats, scales, opacities, colors, viewmats, Ks, deterministic):
    image, alphas, meta = rasterization(
        *(means, quats, scales, opacities, colors, viewmats, Ks, WIDTH, HEIGHT),
        render_mode="RGB+D",
        max_intersections=BUFFER,
        deterministic=deterministic,
    )
    return jnp.sum(image) + jnp.sum(alphas), meta["num_dropped"]


def rasterization_row(machine: Machine, cameras: int, deterministic: int) -> dict:
    """Compiles value and gradient of `rasterization` for `cameras` cameras."""
    shapes = [(NUM, 3), (NUM, 4), (NUM, 3), (NUM,), (NUM, 3), (cameras, 4, 4), (cameras, 3, 3)]
    inputs = machine.place([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    function = functools.partial(loss, deterministic=bool(deterministic))
    gradient = jax.jit(jax.value_and_grad(function, tuple(range(7)), has_aux=True))
    with machine.here(1):
        return compile_ahead(gradient.trace(*inputs).lower(lowering_platforms=(machine.platform,)))


def last_stage(width: int, height: int, stride: int, deterministic: bool, gaussians: int = NUM):
    """Makes the last stage of a training: photographs of this size, kernels of 17 x 17; stride 0: plain splatting."""
    config = procedural.get_config("motion")  # a small scene; its shapes are replaced
    config.sh_degree, config.blur.kernel_sizes, config.blur.strides = 3, (5, 9, 17), (1, 1, max(stride, 1))
    if not stride:
        config.blur.enabled, config.optim.poses = False, 0.0
    config.num_devices = config.views_per_step = 1
    config.deterministic = deterministic
    job = make_job(read_config(config))
    optimizers = make_job_optimizers(job)
    state = jax.eval_shape(lambda: grow(with_optimizers(first_state(job), optimizers), gaussians))
    dataset = make_dataset(job.scene, 1.0, extent=job.extent, near_plane=job.near_plane)
    images = jax.ShapeDtypeStruct((dataset.images.shape[0], height, width, 3), jnp.uint8)
    dataset = dataclasses.replace(dataset, images=images, pose_frame=job.pose_frame)
    recipe = functools.partial(make_recipe, job, optimizers, job.stages[-1], dataset, buffer=4 * gaussians)
    return recipe, state, dataset


def step_row(
    machine: Machine, width: int, height: int, stride: int, deterministic: int, devices: int, gaussians: int = NUM
) -> dict:
    """Compiles a dispatch of the last stage, one view per device; counts launches and bytes per step."""
    make, state, dataset = last_stage(width, height, stride, bool(deterministic), gaussians)
    with machine.here(devices):
        recipe = dataclasses.replace(make(num_devices=devices), views_per_step=devices)
        mapped = parallel.parallelize(functools.partial(train_steps, recipe=recipe), num_args=3, num_devices=devices)
        ranks = jax.ShapeDtypeStruct((devices,), jnp.int32)
        ranks = machine.place(ranks, devices, axes=(parallel.AXIS,))
        number = jax.ShapeDtypeStruct((), jnp.int32)
        shapes = machine.place((parallel.without_empty(state), dataset, number, number), devices)
        row = compile_ahead(mapped.lower(ranks, *shapes), programs.compiler_options(recipe))
    return per_step(row, recipe)


def per_step(row: dict, recipe) -> dict:
    """Launches and bytes of one step of a dispatch."""
    return row | {name: row[name] // max(recipe.loop_length, 1) for name in ("launches", "moved_bytes")}


def split_row(machine: Machine, gaussians: int, sent: int, width: int, height: int, devices: int) -> dict:
    """Compiles a dispatch of the last stage, one view per device, with Gaussians that are split over the devices."""
    make, state, dataset = last_stage(width, height, 2, False)
    shards = Shards(devices)
    rows = devices, -(-gaussians // devices)
    state = map_rows(state, lambda x: jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype))
    axes = row_axes(state)
    with machine.here(devices):
        recipe = dataclasses.replace(make(num_devices=devices), views_per_step=devices, shards=shards, max_sent=sent)
        step = functools.partial(train_steps, recipe=recipe)
        mapped: Any = parallel.parallelize(step, num_args=3, num_devices=devices, num_shards=devices, axes=axes)
        ranks = machine.place(jax.ShapeDtypeStruct((devices,), jnp.int32), devices, axes=(parallel.AXIS,))
        number = jax.ShapeDtypeStruct((), jnp.int32)
        is_whole = lambda axis: axis is None
        place = lambda axis, x: machine.place(x, devices, axes=() if is_whole(axis) else (parallel.AXIS,))
        state = jax.tree.map(place, axes, state, is_leaf=is_whole)
        row = compile_ahead(
            mapped.lower(ranks, state, *machine.place((dataset, number, number), devices)),
            programs.compiler_options(recipe),
        )
    return per_step(row, recipe)


def between_row(machine: Machine) -> dict:
    """Compiles the operations between steps, one program each. Memory is the largest, other numbers are sums."""
    make, state, dataset = last_stage(600, 400, 2, False)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    thresholds = Thresholds(*[jax.ShapeDtypeStruct((), jnp.float32)] * len(Thresholds._fields))
    state, dataset, number, key, thresholds = machine.place(
        (state, dataset, number, jax.eval_shape(lambda: jax.random.key(0)), thresholds)
    )
    with machine.here(1):
        view = make(num_devices=1).view
        camera = machine.place(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), dataset.cameras))
        lowered = [
            programs.control_density.lower(state, number, key, thresholds, dataset),
            programs.refresh_filter.lower(state, number, dataset),
            programs.lower_opacity.lower(state, number),
            programs.copy_state.lower(state),
            programs._largest_count.lower(state, dataset, view=view),
            jax.jit(render, static_argnames="view").lower(
                state.gaussians, state.alive, state.filter_3d, camera, view=view
            ),
        ]
        rows = [compile_ahead(program) for program in lowered]
    return {name: sum(row[name] for row in rows) for name in ("seconds", "launches")} | {
        "temporary_bytes": max(row["temporary_bytes"] for row in rows)
    }


if __name__ == "__main__":
    rows = {"rasterization": rasterization_row, "step": step_row, "split": split_row, "between": between_row}
    name, what, *sizes = sys.argv[1:]
    print(json.dumps(rows[what](MACHINES[name], *map(int, sizes))))
