"""Compares memory and time of the blur with materialized kernels and with the streamed pass, which stores no kernels.

  python -m experiments.benchmarks.memory --rows=memory.jsonl

Prints a Markdown table. A program is the network's last layer, softmax and weighted sum, forward and backward, with 32
features per pixel. Memory is the compiled program's temporaries and outputs (gradients), without its arguments; the
gradient of the features, which both programs return, has a column of its own. Times are medians of alternating calls.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.errors import UserError
from bags_jax.ops.blur import kernels_of, stream_blur
from bags_jax.ops.blur.reference import apply_kernels
from bags_jax.report.tables import markdown_table
from experiments.benchmarks.arguments import parse_counts, parse_sizes
from experiments.benchmarks.rows import open_rows, provenance
from experiments.benchmarks.timing import time_in_turn

_SIZES = flags.DEFINE_list("sizes", "600x400,1200x800,2400x1600", "Image sizes.")
_STRIDES = flags.DEFINE_list("strides", "1,2", "Sides of the pixel blocks that share a kernel.")
_KERNEL = flags.DEFINE_integer("kernel", 17, "Side of the kernels.", lower_bound=3)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Number of timed calls; the median is reported.", lower_bound=1)
_TIME_BELOW = flags.DEFINE_float("time_below", 2.0, "Largest program that is timed, GiB.")
_ROWS = flags.DEFINE_string("rows", "", "File to which JSON rows are appended; empty: none.")

FEATURES, BOUND = 32, 5.0


def blur_materialized(planes, features, weight, bias, *, stride: int):
    """Computes all kernels as an array, then the weighted sum."""
    kernels = kernels_of(features @ weight + bias[None, None], BOUND)
    return apply_kernels(planes, jnp.moveaxis(kernels, -1, 0), stride)


def blur_streamed(planes, features, weight, bias, *, stride: int):
    """Computes the same result without storing the kernels."""
    return stream_blur(planes, features, weight, bias, stride=stride, bound=BOUND)[0]


def compile_gradient(function, width: int, height: int, stride: int):
    """Compiles the gradient of one variant; returns (program, shapes of its arguments, bytes without its arguments)."""
    h, w, num_taps = -(-height // stride), -(-width // stride), _KERNEL.value**2
    shapes = [(3, height, width), (h, w, FEATURES), (FEATURES, num_taps), (num_taps,)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(*args):
        return jnp.sum(functools.partial(function, stride=stride)(*args) ** 2)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*args).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend does not report the memory of a program"
    return compiled, shapes, memory.temp_size_in_bytes + memory.output_size_in_bytes


def measure_seconds(programs: dict, shapes) -> dict[str, float]:
    """Median time of each program; calls alternate."""
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.random(shape), jnp.float32) for shape in shapes]
    runs = {name: lambda p=program: jax.block_until_ready(p(*args)) for name, program in programs.items()}
    return {name: wall for name, (wall, _) in time_in_turn(runs, warm_up=1, timed=_REPEATS.value).items()}


def measure(width: int, height: int, stride: int) -> dict:
    """Measures bytes and seconds of both variants at one size; seconds only of programs up to --time_below."""
    programs, needs, shapes = {}, {}, []
    for name, function in (("materialized", blur_materialized), ("streamed", blur_streamed)):
        programs[name], shapes, needs[name] = compile_gradient(function, width, height, stride)
    fits = {name: programs[name] for name, size in needs.items() if size <= _TIME_BELOW.value * 2**30}
    features_bytes = 4 * int(np.prod(shapes[1]))
    case = {"width": width, "height": height, "stride": stride, "kernel": _KERNEL.value}
    return {**case, "bytes": needs, "features_bytes": features_bytes, "seconds": measure_seconds(fits, shapes)}


def main() -> None:
    """Measures every case and prints the table."""
    if _KERNEL.value % 2 == 0:
        raise UserError(f"--kernel is {_KERNEL.value}, expected an odd number: a kernel has a centre pixel")
    write, lines = open_rows(_ROWS), []
    for width, height in parse_sizes(_SIZES):
        for stride in parse_counts(_STRIDES):
            row = measure(width, height, stride)
            write({**row, **provenance()})
            mib = [f"{x / 2**20:.0f}" for x in (*row["bytes"].values(), row["features_bytes"])]
            took = [f"{row['seconds'][n]:.2f}" if n in row["seconds"] else "" for n in ("materialized", "streamed")]
            lines.append([f"{width} x {height}", str(stride), *mib, *took])
            print(lines[-1], flush=True)
    mib = ["materialized, MiB", "streamed, MiB", "of it the features' gradient, MiB"]
    print(markdown_table(["image", "stride", *mib, "materialized, s", "streamed, s"], lines))


if __name__ == "__main__":
    launch(main)
