"""The CUDA kernels on a CPU: the PTX that is shipped, in C++ (ptx_to_cpp.py), behind the calls that launch it."""

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
import pytest
from ptx_to_cpp import translate

from bags_jax.ops.toolchain import cuda_build, cuda_launch

FOLDER = pathlib.Path(__file__).parent / "emulator"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bags_jax"
FLAGS = ["-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-fno-operator-names", "-fPIC", "-w"]


def shipped(*programs: str) -> list[str]:
    """Texts of all kernels of programs, each as it is launched."""
    found = []
    for program in programs:
        names = re.findall(rf"{cuda_launch.ENTRY}(\w+)", cuda_build.ptx_path(program).read_text())
        found += [cuda_launch.ptx(program, name) for name in names]
    return found


def compile_emulator(kernels: Iterable[str]) -> pathlib.Path:
    """Compiles kernels and emulator into one library, unless it is there; half a minute of one core for all that are shipped."""
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
        list(pool.map(lambda file, made: _gcc("-c", file, to=made), files, objects))
        output = pathlib.Path(scratch, "emulator.so")
        _gcc("-shared", *objects, to=output)
        output.replace(library)
    return library


def _gcc(action: str, *files: pathlib.Path, to: pathlib.Path) -> None:
    command = ["g++", *FLAGS, f"-I{FOLDER}", f"-I{jax.ffi.include_dir()}", action, *map(str, files), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@functools.cache
def emulator(kernels: tuple[str, ...]) -> str:
    """A route to a CPU on which these kernels run; skips the test where there is no g++."""
    if not shutil.which("g++"):
        pytest.skip("no g++: the CUDA kernels cannot be emulated")
    library = compile_emulator(kernels)
    jax.ffi.register_ffi_target(library.stem, jax.ffi.pycapsule(ctypes.CDLL(str(library)).Emulate), platform="cpu")
    return library.stem


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Within this, backend="cuda" runs on the CPU, unless there is a GPU."""
    if jax.default_backend() == "gpu":
        yield
        return
    with cuda_launch.forced_route(emulator(tuple(shipped(*cuda_build.PROGRAMS)))):
        yield
