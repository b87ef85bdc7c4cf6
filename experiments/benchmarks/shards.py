"""Compares a training step with whole Gaussians on every device and with Gaussians that are split over the devices.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python -m experiments.benchmarks.shards

Prints a Markdown table, from compiled programs; nothing runs. State and temporaries are those of one device. Sent is what
one device sends to others in one step: each number of an all-reduce goes around a ring twice, (D - 1) / D times its size;
of an all-to-all a device keeps 1 / D.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from bags_jax import parallel
from bags_jax.cli.launch import launch
from bags_jax.config import read_config
from bags_jax.data.pyramid import make_dataset
from bags_jax.dispatch import make_job_optimizers, make_recipe
from bags_jax.errors import UserError
from bags_jax.job import first_state, make_job
from bags_jax.report.tables import markdown_table
from bags_jax.scene.initialize import with_optimizers
from bags_jax.scene.rows import map_rows, row_axes
from bags_jax.shards import WHOLE, Shards
from bags_jax.step import train_steps
from configs import procedural
from experiments.benchmarks.arguments import parse_counts
from experiments.benchmarks.rows import open_rows, provenance

_DEVICES = flags.DEFINE_list("devices", "1,2,4,8", "Numbers of devices.")
_GAUSSIANS = flags.DEFINE_integer("gaussians", 1 << 20, "Number of rows for Gaussians.", lower_bound=8)
_VISIBLE = flags.DEFINE_float("visible", 0.25, "Share of the Gaussians that a view sees, for which there are buffers.")
_ROWS = flags.DEFINE_string("rows", "", "File to which JSON rows are appended; empty: none.")

BUFFER = 1 << 18  # intersections
ITEM_BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def compile_step(num_devices: int, shards: Shards, max_sent: int) -> Any:
    """Compiles a training step, one view for each device, with poses that are refined."""
    config = procedural.get_config("motion,smoke")
    config.sh_degree, config.num_devices, config.views_per_step = 3, num_devices, num_devices
    config.blur.enabled = False  # compiles faster; it has no part in the exchange of Gaussians
    job = make_job(read_config(config))
    optimizers = make_job_optimizers(job)
    rows = (num_devices, _GAUSSIANS.value // num_devices) if shards.are_split else (_GAUSSIANS.value,)
    state = jax.eval_shape(lambda: with_optimizers(first_state(job), optimizers))
    state = map_rows(state, lambda x: jax.ShapeDtypeStruct((*rows, *x.shape[1:]), x.dtype))
    dataset = make_dataset(job.scene, 1.0, extent=job.extent, near_plane=job.near_plane)
    dataset = dataclasses.replace(dataset, pose_frame=job.pose_frame)
    recipe = make_recipe(job, optimizers, job.stages[-1], dataset, buffer=BUFFER, num_devices=num_devices)
    recipe = dataclasses.replace(recipe, shards=shards, max_sent=max_sent)
    mapped: Any = parallel.parallelize(
        functools.partial(train_steps, recipe=recipe),
        num_args=3,
        num_devices=num_devices,
        num_shards=shards.num,
        axes=row_axes(state) if shards.are_split else None,
    )
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return mapped.lower(parallel.ranks(num_devices), state, dataset, number, number).compile()


def count_sent(text: str, num_devices: int) -> float:
    """Bytes that one device sends in one step, by the exchanges of a compiled program."""
    sent = 0.0
    for shapes, operation in re.findall(r"= (.*?) (all-reduce|all-to-all)(?:-start)?\(", text):
        found = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", shapes))
        size = sum(ITEM_BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in found)
        sent += (2 if operation == "all-reduce" else 1) * size * (num_devices - 1) / num_devices
    return sent


def measure_case(num_devices: int, kind: str) -> dict:
    """One row: bytes for each Gaussian."""
    shards = WHOLE if kind == "whole" or num_devices == 1 else Shards(num_devices)
    own = _GAUSSIANS.value // num_devices
    compiled = compile_step(
        num_devices, shards, int(_VISIBLE.value * own) if "visible" in kind and shards.are_split else 0
    )
    memory, num = compiled.memory_analysis(), own * num_devices
    return {
        "devices": num_devices,
        "Gaussians": kind,
        "state, B": round(memory.argument_size_in_bytes / num, 1),
        "temporaries, B": round(memory.temp_size_in_bytes / num, 1),
        "sent, B": round(count_sent(compiled.as_text(), num_devices) / num, 1),
    }


def main() -> None:
    """Compiles all cases, prints the table."""
    devices, write = parse_counts(_DEVICES), open_rows(_ROWS)
    if max(devices) > jax.local_device_count():
        raise UserError(
            f"--devices={max(devices)} came, but there are {jax.local_device_count()}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={max(devices)}"
        )
    rows = []
    for num in devices:
        for kind in ("whole", "split", "split, visible") if num > 1 else ("whole",):
            rows.append(measure_case(num, kind))
            write({**rows[-1], "gaussians": _GAUSSIANS.value, "visible": _VISIBLE.value, **provenance()})
    print(markdown_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))


if __name__ == "__main__":
    launch(main)
