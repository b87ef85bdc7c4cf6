"""Runs the shipped CUDA kernels on a CPU: translates their PTX to C++ (translate.py) and takes the place of launches.

README.md beside this file says what the emulator finds.
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator

import jax

from bags_jax.ops.toolchain import cuda_build, cuda_launch
from tools.ptx_emulator.translate import translate

FOLDER = pathlib.Path(__file__).parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bags_jax"
FLAGS = ["-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-fno-operator-names", "-fPIC", "-w"]


def find_problem() -> str:
    """Returns why the kernels can neither be emulated nor run on this machine, or ""."""
    return "" if shutil.which("g++") or jax.default_backend() == "gpu" else "no g++: CUDA kernels cannot be emulated"


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Within this context backend="cuda" runs on the CPU, unless there is a GPU."""
    if jax.default_backend() == "gpu":
        yield
        return
    with cuda_launch.forced_route(make_route(tuple(shipped(*cuda_build.PROGRAMS)))):
        yield


@functools.cache
def make_route(kernels: tuple[str, ...]) -> str:
    """Compiles PTX texts of kernels. Returns the route for `cuda_launch.launch` on which they run on the CPU."""
    library = compile_kernels(kernels)
    jax.ffi.register_ffi_target(library.stem, jax.ffi.pycapsule(ctypes.CDLL(str(library)).Emulate), platform="cpu")
    return library.stem


def shipped(*programs: str) -> list[str]:
    """Returns the PTX texts of all kernels of these programs, as they are launched."""
    found = []
    for program in programs:
        names = re.findall(rf"{cuda_launch.ENTRY}(\w+)", cuda_build.ptx_path(program).read_text())
        found += [cuda_launch.ptx(program, name) for name in names]
    return found


def compile_kernels(kernels: Iterable[str]) -> pathlib.Path:
    """Compiles kernels and emulator into one library, unless it is in the cache.

    All shipped kernels take half a minute on one core.
    """
    programs = [translate(text) for text in kernels]
    processes = os.cpu_count() or 1
    sources = ["\n".join(['#include "ptx.h"', *programs[i::processes]]) for i in range(processes)]
    sources.append((FOLDER / "emulate.cc").read_text())
    headers = [path.read_text() for path in sorted(FOLDER.glob("*.h"))]
    text = "\n".join([*FLAGS, *headers, *sources])
    library = CACHE / f"emulator-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch, concurrent.futures.ThreadPoolExecutor(processes) as pool:
        files = [pathlib.Path(scratch, f"{i}.cc") for i in range(len(sources))]
        for file, source in zip(files, sources, strict=True):
            file.write_text(source)
        objects = [file.with_suffix(".o") for file in files]
        list(pool.map(lambda file, output: _run_gcc("-c", file, output=output), files, objects))
        output = pathlib.Path(scratch, "emulator.so")
        _run_gcc("-shared", *objects, output=output)
        output.replace(library)  # a process that builds at the same time finds all of the library or none
    return library


def _run_gcc(action: str, *files: pathlib.Path, output: pathlib.Path) -> None:
    command = ["g++", *FLAGS, f"-I{FOLDER}", f"-I{jax.ffi.include_dir()}", action, *map(str, files), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
