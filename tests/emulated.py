"""The CUDA kernels on a CPU: their very source, compiled by g++ with tests/emulator, behind the calls that launch them."""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import jax
import pytest

from bags_jax.cuda import build, launch

FOLDER = pathlib.Path(__file__).parent / "emulator"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bags_jax"
EMULATOR = launch.Route("bags_jax_emulate", "{program}/{kernel}")


def compile_emulator() -> pathlib.Path:
    """Compiles kernels and emulator into one library, unless it is there; 10 s on a busy core."""
    includes = [str(FOLDER), str(build.FOLDER), jax.ffi.include_dir()]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w", *build.defines("binning")]
    flags += [f"-I{path}" for path in includes]
    sources = [*sorted(FOLDER.iterdir()), *sorted(build.FOLDER.glob("*.cu*"))]
    text = "\n".join([*flags, *(p.read_text() for p in sources)])
    library = CACHE / f"emulator-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            output = pathlib.Path(scratch, "emulator.so")
            command = ["g++", *flags, str(FOLDER / "emulate.cc"), "-o", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            output.replace(library)
    return library


@functools.cache
def _register() -> None:
    library = ctypes.CDLL(str(compile_emulator()))
    jax.ffi.register_ffi_target(EMULATOR.target, jax.ffi.pycapsule(library.Emulate), platform="cpu")


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Within this, backend="cuda" runs on the CPU, unless there is a GPU; skips the test where there is no g++."""
    if jax.default_backend() == "gpu":
        yield
        return
    if not shutil.which("g++"):
        pytest.skip("no g++: the CUDA kernels cannot be emulated")
    _register()
    with launch.forced_route(EMULATOR):
        yield
