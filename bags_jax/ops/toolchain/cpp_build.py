"""Compiles the C++ of all operators (ops/*/cpu) with the compiler of the system, once, and registers it with XLA."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np

from bags_jax.cache_home import find_cache_home
from bags_jax.errors import UserError
from bags_jax.ops.limits import CHANNELS, COLORS, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, STRIDES
from bags_jax.ops.toolchain.library_cache import build_library, is_built
from bags_jax.platforms import current_platform

TOOLCHAIN = pathlib.Path(__file__).parent
SOURCES = sorted(TOOLCHAIN.parent.glob("*/cpu/*.cc"))
HEADERS = sorted([*TOOLCHAIN.glob("*.h"), *TOOLCHAIN.parent.glob("*/cpu/*.h")])
TARGETS = (
    *("bags_jax_count", "bags_jax_bin", "bags_jax_blend", "bags_jax_blend_gradient"),
    *("bags_jax_filter_rows", "bags_jax_filter_rows_gradient"),
    "bags_jax_ssim",
)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast", "-Wno-psabi")
LIMITS = {"MIN_ALPHA": MIN_ALPHA, "MAX_ALPHA": MAX_ALPHA, "MIN_TRANSMITTANCE": MIN_TRANSMITTANCE}
LISTS = {"CHANNELS": CHANNELS, "STRIDES": STRIDES, "COLORS": (COLORS,)}
MACROS = (
    *(f"-DBAGS_{name}={np.float32(value):.9g}f" for name, value in LIMITS.items()),
    *(f"-DBAGS_{name}={','.join(map(str, values))}" for name, values in LISTS.items()),
)
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 600  # a build takes seconds; the machine may be busy
FORBIDDEN = "BAGS_JAX_NATIVE=0 is set in the environment: unset it"
_lock = threading.Lock()


def is_forbidden() -> bool:
    """Returns whether the user has switched the C++ off."""
    return os.environ.get("BAGS_JAX_NATIVE", "1") == "0"


def cache_folder() -> pathlib.Path:
    """Returns the folder of built libraries."""
    return find_cache_home() / "native"


def _compiler() -> list[str]:
    """Returns the words of the command in CXX (there may be several: ccache g++), else the first compiler in PATH."""
    wanted = os.environ.get("CXX", "")
    commands = [[wanted], wanted.split()] if wanted.strip() else [[name] for name in COMPILERS]
    found = [[path, *options] for program, *options in commands if (path := shutil.which(program))]
    if found:
        return found[0]
    if wanted.strip():
        raise UserError(
            f"CXX is {wanted!r}, and {wanted.split()[0]} is not in PATH: set it to a C++ compiler, or unset it"
        )
    raise UserError(
        f"no C++ compiler ({', '.join(COMPILERS)}) in PATH: install one (Debian: apt install g++, macOS: xcode-select"
        " --install), or set CXX"
    )


def _cpu() -> str:
    """Describes the CPU as -march=native sees it: another CPU may lack instructions that the library uses."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    keys = ("model name", "flags", "Features", "CPU part")
    distinct = dict.fromkeys(line for line in lines if line.startswith(keys))
    return "\n".join([platform.machine(), platform.processor(), platform.system(), *distinct])


def _fingerprint(compiler: list[str]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    sources = [p.name.encode() + p.read_bytes() for p in (*SOURCES, *HEADERS)]
    texts = [importlib.metadata.version("jaxlib"), " ".join([*FLAGS, *MACROS]), " ".join(compiler), version, _cpu()]
    return hashlib.sha256(b"\0".join([*sources, *map(str.encode, texts)])).hexdigest()[:24]


def _compile(compiler: list[str], library: pathlib.Path) -> None:
    includes = [f"-I{TOOLCHAIN}", "-isystem", jax.ffi.include_dir()]
    command = [*compiler, *FLAGS, *MACROS, *includes, *map(str, SOURCES)]
    if errors := build_library(library, command, timeout_s=TIMEOUT_S):
        lines = errors.strip().splitlines()
        raise UserError(f"{' '.join(command)} failed: {next((x for x in lines if 'error' in x), lines[0])}")


@contextlib.contextmanager
def _timed_messages() -> Iterator[None]:
    start = time.perf_counter()
    print("bags_jax: compiling the C++ kernels for this CPU (about 10 s, once) ...", file=sys.stderr, flush=True)
    yield
    print(f"bags_jax: compiled in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def build() -> pathlib.Path:
    """Returns the library for this machine. Compiles it, with two lines on stderr, unless it is in the cache.

    Raises:
      UserError: no compiler, one that fails, or a cache that cannot be written or belongs to somebody else.
    """
    compiler = _compiler()
    library = cache_folder() / f"{_fingerprint(compiler)}.so"
    if is_built(library):
        return library
    try:
        with _timed_messages():
            _compile(compiler, library)
    except OSError as error:
        raise UserError(
            f"cannot write {library.parent} ({error.strerror}): set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{' '.join(compiler)} took more than {TIMEOUT_S} s: build when the machine is less busy"
        ) from error
    return library


@functools.cache
def _register() -> str:
    """Builds, loads and registers the C++. Returns the problem, or ""."""
    try:
        loaded = ctypes.cdll.LoadLibrary(str(build()))
    except (UserError, OSError, RuntimeError, ImportError) as error:  # RuntimeError: no home folder
        return str(error)
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    return ""


def find_problem() -> str:
    """Returns why the C++ cannot be used on this machine, or "". The first call builds the C++ if necessary."""
    if current_platform() != "cpu":
        return f"JAX runs on {current_platform()}: set JAX_PLATFORMS=cpu in the environment"
    if is_forbidden():
        return FORBIDDEN
    with _lock:
        return _register()


def require() -> None:
    """Builds and registers the C++ unless that is done.

    Raises:
      UserError: the C++ cannot be used on this machine.
    """
    if problem := find_problem():
        raise UserError(f"the C++ kernels cannot be used: {problem}")
