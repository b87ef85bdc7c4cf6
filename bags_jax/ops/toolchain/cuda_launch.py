"""Launches CUDA kernels in XLA programs: a custom call carries the PTX text, and the driver translates it.

There are two routes. XLA is a custom call that XLA has: nothing is compiled, but its name is not part of XLA's API. FFI
is the documented way: a handler in a library that is compiled at first use (launcher.cc, by g++ or nvcc) launches the
same PTX through the driver. Tests add a third route, an emulator on the CPU (tools/ptx_emulator).
"""

import contextlib
import ctypes
import functools
import hashlib
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bags_jax.cache_home import find_cache_home
from bags_jax.ops.toolchain.library_cache import build_library, is_built

FOLDER = pathlib.Path(__file__).parent
ENTRY = ".visible .entry "  # start of a kernel in PTX
MIN_CAPABILITY = (8, 0)
TIMEOUT_S = 600  # of the compiler; it takes seconds
TYPES = {"float32", "int32", "uint32", "uint16"}  # types of the operands of kernels
# Errors of XLA (RuntimeError), the driver or a compiler. The other route may still work.
PROBLEMS = (RuntimeError, OSError, ValueError, TypeError, AttributeError, NotImplementedError)


# Routes: names of the custom call.
XLA = "__gpu$xla.gpu.ptx"
FFI = "bags_jax_launch_ptx"


class Kernel(NamedTuple):
    """A kernel of one of the PTX files, and its threads per block."""

    program: str
    name: str
    threads: int


def kernel_folder(program: str) -> pathlib.Path:
    """Returns the folder of a program's source: that of the operator of its name, else of the rasterizer."""
    name = program.partition("_")[0]
    return FOLDER.parent / (name if name in ("blur", "see", "ssim") else "rasterize") / "cuda"


def ptx_path(program: str) -> pathlib.Path:
    """Returns the shipped PTX file of a program."""
    return kernel_folder(program) / "ptx" / f"{program}.ptx"


@functools.cache
def ptx(program: str, name: str) -> str:
    """Returns the text of one kernel of a shipped PTX file. The driver translates the whole text of every call."""
    head, *entries = ptx_path(program).read_text().split(ENTRY)
    (text,) = [entry for entry in entries if entry.startswith(f"{name}(")]
    return head + ENTRY + text[: text.rindex("}")] + "}\n"


def launch(
    kernel: Kernel,
    outputs: Sequence[jax.ShapeDtypeStruct],
    *operands: jax.Array,
    grid: tuple[int, int],
    aliases: dict[int, int] | None = None,
    route: str | None = None,
) -> Sequence[jax.Array]:
    """Launches a kernel on operands and outputs, in this order.

    Args:
      kernel: program and name of the kernel, and threads per block.
      outputs: shapes of the results.
      operands: device arrays. Scalars must be in an array.
      grid: blocks in x and y.
      aliases: operand -> output that uses its memory.
      route: name of the custom call; None: the route that works on this machine.
    Raises:
      TypeError: an operand of a type that no kernel has. Kernels do not check types.
    """
    if wrong := {str(x.dtype) for x in operands} - TYPES:
        raise TypeError(
            f"{kernel.name}: operands of {', '.join(sorted(wrong))} came, expected {', '.join(sorted(TYPES))}"
        )
    route = route or current_route()
    call = jax.ffi.ffi_call(
        route,
        list(outputs),
        input_output_aliases=aliases,
        custom_call_api_version=4,
        has_side_effect=False,
        vmap_method="sequential",
    )
    blocks = dict(zip(("grid_x", "grid_y", "grid_z"), (*grid, 1), strict=True))
    threads = {"block_x": kernel.threads, "block_y": 1, "block_z": 1}
    return call(
        *operands,
        name=kernel.name,
        kernel_type="ptx",
        kernel_data=ptx(kernel.program, kernel.name),
        shared_mem_bytes=np.int32(0),
        **{name: np.int32(value) for name, value in {**blocks, **threads}.items()},
    )


class Found(NamedTuple):
    """Result of the search for a route: one of the two is empty."""

    route: str
    problem: str


_forced: list[str] = []


@contextlib.contextmanager
def forced_route(route: str) -> Iterator[None]:
    """Within this context, kernels take this route, untested. For programs for another machine, and for tests."""
    _forced.append(route)
    try:
        yield
    finally:
        _forced.pop()


def current_route() -> str:
    """Returns the route that kernels take on this machine."""
    return _forced[-1] if _forced else find_route().route or XLA


def find_problem() -> str:
    """Returns why kernels cannot be launched on JAX's default device, or ""."""
    return "" if _forced else find_route().problem


@functools.cache
def find_route() -> Found:
    """Finds the first route by which a kernel runs on this machine's GPU, by running one.

    Raises:
      RuntimeError: the memory of the GPU is full. The routes are not tested then; the next call tries again.
    """
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return Found("", f"JAX runs on {device}: it needs an NVIDIA GPU and pip install 'jax[cuda13]'")
    capability = tuple(int(x) for x in str(getattr(device, "compute_capability", "0.0")).split("."))
    if capability < MIN_CAPABILITY:
        needed = ".".join(map(str, MIN_CAPABILITY))
        return Found("", f"{device.device_kind} has compute capability {device.compute_capability}, needs {needed}")
    problems = []
    for route, prepare in ((XLA, lambda: None), (FFI, register_launcher)):
        try:
            prepare()
            _probe(route)
        except PROBLEMS as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            problems.append(f"{route}: {error}")
        else:
            return Found(route, "")
    return Found("", "; ".join(problems))


def _probe(route: str) -> None:
    """Runs the smallest kernel with the features of XLA that `blend_backward` needs.

    One operand is passed twice, and the result uses the memory of another operand. The kernel writes the sum of slots 2
    and 3 to slot 0 and leaves the other slots.

    Raises:
      RuntimeError: the kernel does not run, or returns a wrong result.
    """
    kernel = Kernel("binning", "sum_slots", 256)

    @jax.jit
    def add(sizes, place, slots):
        output = jax.ShapeDtypeStruct(slots.shape, slots.dtype)
        return launch(kernel, [output], sizes, place, place, slots, grid=(1, 1), aliases={3: 0}, route=route)[0]

    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
        operands = [1, 4, 1, 1, 1, 1], [2], [1.0, 2.0, 4.0, 8.0]
        dtypes = jnp.int32, jnp.int32, jnp.float32
        found = jax.device_get(add(*map(jnp.array, operands, dtypes))).tolist()
    if found != [12, 2, 4, 8]:
        raise RuntimeError(f"a kernel ran and returned {found}, expected [12, 2, 4, 8]")


def build_launcher(folder: pathlib.Path) -> pathlib.Path:
    """Compiles launcher.cc into a folder, unless the library is there. Returns the library.

    Raises:
      RuntimeError: no compiler, or the compiler fails.
    """
    code = FOLDER / "launcher.cc"
    library = folder / f"launcher-{hashlib.sha256(code.read_bytes() + jax.__version__.encode()).hexdigest()[:16]}.so"
    if is_built(library):
        return library
    compiler = shutil.which("g++") or shutil.which("nvcc")
    if compiler is None:
        raise RuntimeError("neither g++ nor nvcc is on the path: install one of them")
    position = ["-fPIC"] if compiler.endswith("g++") else ["-Xcompiler", "-fPIC"]
    command = [compiler, "-std=c++17", "-O2", "-shared", *position, f"-I{jax.ffi.include_dir()}", str(code), "-ldl"]
    try:
        errors = build_library(library, command, timeout_s=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{compiler} took more than {TIMEOUT_S} s") from error
    if errors:
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
    return library


@functools.cache
def register_launcher() -> None:
    """Compiles launcher.cc into the cache folder of the user, and registers it with XLA."""
    library = ctypes.CDLL(str(build_launcher(find_cache_home())))
    jax.ffi.register_ffi_target(FFI, jax.ffi.pycapsule(library.LaunchPtx), platform="CUDA")
