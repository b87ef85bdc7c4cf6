"""What applying the blur model's kernels costs in memory and time: kernels that are made, against the streamed pass.

  python -m experiments.benchmarks.memory --output=memory.json

Last layer, softmax and weighted sum, forward and backward, 32 features a pixel. Memory is what the compiled program asks for
beside its arguments: temporaries and gradients (the features' own gradient is named beside it, since both must have it). Times
are medians of calls taken in turn, for programs that fit --time_below.
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
from experiments.benchmarks.arguments import counts, row_writer, sizes
from experiments.benchmarks.provenance import provenance
from experiments.benchmarks.timing import times_in_turn

_SIZES = flags.DEFINE_list("sizes", "600x400,1200x800,2400x1600", "Image sizes.")
_STRIDES = flags.DEFINE_list("strides", "1,2", "Sides of the blocks of pixels that share a kernel.")
_KERNEL = flags.DEFINE_integer("kernel", 17, "Side of the kernels.", lower_bound=3)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls, of which the median is taken.", lower_bound=1)
_TIME_BELOW = flags.DEFINE_float("time_below", 2.0, "Time nothing that needs more GiB than this.")
_OUTPUT = flags.DEFINE_string("output", "", "File for one JSON row a case; default: none.")

FEATURES, BOUND = 32, 5.0


def made(planes, features, weight, bias, *, stride: int):
    """Kernels as an array, then their weighted sum."""
    kernels = kernels_of(features @ weight + bias[None, None], BOUND)
    return apply_kernels(planes, jnp.moveaxis(kernels, -1, 0), stride)


def streamed(planes, features, weight, bias, *, stride: int):
    """The same, never made."""
    return stream_blur(planes, features, weight, bias, stride=stride, bound=BOUND)[0]


def compile_gradient(function, width: int, height: int, stride: int):
    """Forward and backward of one way, and what it needs beside its arguments, bytes."""
    h, w, num_taps = -(-height // stride), -(-width // stride), _KERNEL.value**2
    shapes = [(3, height, width), (h, w, FEATURES), (FEATURES, num_taps), (num_taps,)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(*args):
        return jnp.sum(functools.partial(function, stride=stride)(*args) ** 2)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*args).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend does not say what memory a program needs"
    return compiled, shapes, memory.temp_size_in_bytes + memory.output_size_in_bytes


def seconds(programs: dict, shapes) -> dict[str, float]:
    """Median time of each program, called in turn."""
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.random(shape), jnp.float32) for shape in shapes]
    runs = {name: lambda p=program: jax.block_until_ready(p(*args)) for name, program in programs.items()}
    return {name: wall for name, (wall, _) in times_in_turn(runs, warm_up=1, timed=_REPEATS.value).items()}


def measure(width: int, height: int, stride: int) -> dict:
    """Bytes and seconds of both ways at one size; seconds of what fits."""
    programs, needs, shapes = {}, {}, []
    for name, function in (("made", made), ("streamed", streamed)):
        programs[name], shapes, needs[name] = compile_gradient(function, width, height, stride)
    fits = {name: programs[name] for name, size in needs.items() if size <= _TIME_BELOW.value * 2**30}
    features_bytes = 4 * int(np.prod(shapes[1]))
    case = {"width": width, "height": height, "stride": stride, "kernel": _KERNEL.value}
    return {**case, "bytes": needs, "features_bytes": features_bytes, "seconds": seconds(fits, shapes)}


def main() -> None:
    """Measures every case and prints the table."""
    if _KERNEL.value % 2 == 0:
        raise UserError(f"--kernel is {_KERNEL.value}, expected an odd number: the centre of a kernel is a pixel")
    write, lines = row_writer(_OUTPUT), []
    for width, height in sizes(_SIZES):
        for stride in counts(_STRIDES):
            row = measure(width, height, stride)
            write({**row, **provenance()})
            mib = [f"{x / 2**20:.0f}" for x in (*row["bytes"].values(), row["features_bytes"])]
            took = [f"{row['seconds'][name]:.2f}" if name in row["seconds"] else "" for name in ("made", "streamed")]
            lines.append([f"{width} x {height}", str(stride), *mib, *took])
            print(lines[-1], flush=True)
    header = [
        "image",
        "stride",
        "made, MiB",
        "streamed, MiB",
        "of it the features' gradient",
        "made, s",
        "streamed, s",
    ]
    print(markdown_table(header, lines))


if __name__ == "__main__":
    launch(main)
