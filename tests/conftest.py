"""The setting of every test: the CPU as two devices, shapes that are checked at run time, no silent rank promotion.

Shapes: jaxtyping's import hook puts beartype around every function and class of bags_jax, except in structs.py. There it
cannot: JAX rebuilds pytrees with batch axes, None, shapes or labels as leaves, all by calling the class. `check_fields`
checks structs instead, where code of this project builds them from arrays.
"""

import dataclasses
import functools
import gc
import importlib.metadata
import inspect
import os
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bags_jax" / "xla_tests"

# JAX reads these variables when it is imported or makes its first array. The CPU is always there: other platforms are compared
# with it.
os.environ["JAX_PLATFORMS"] = f"{os.environ.get('BAGS_TEST_PLATFORM', '')},cpu".lstrip(",")
FLAGS = "--xla_force_host_platform_device_count=2"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions may lack the flag, and abort
    # XLA's older emitters compile a training step in two thirds of the time; the program is up to a tenth slower.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

assert "bags_jax" not in sys.modules, "bags_jax was imported before its shapes could be checked"
jaxtyping.install_import_hook(
    [
        f"bags_jax.{p.stem}"
        for p in (ROOT / "bags_jax").iterdir()
        if p.stem not in ("__init__", "__pycache__", "structs")
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int is accepted as a float
)

from bags_jax import structs


def check_fields(struct: Any) -> None:
    """Raises TypeError unless the arrays of a struct fit its annotations, all with the same batch axes in front."""
    shapes: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(struct) if inspect.isclass(f.type)}
    shapes = {name: shape for name, shape in shapes.items() if issubclass(shape, jaxtyping.AbstractArray)}
    arrays = {name: getattr(struct, name) for name in shapes}
    if not all(isinstance(x, jax.Array) and x.dtype != jax.dtypes.float0 for x in arrays.values()):
        return
    with jaxtyping.jaxtyped("context"):
        for name, x in arrays.items():
            shape = shapes[name]
            axes = shape.dim_str if "*" in shape.dim_str else f"*batch {shape.dim_str}"
            if not isinstance(x, shape.dtype[shape.array_type, axes]):
                expected = f"{shape.dtype.__name__}[{axes}], with the same axes as the fields before it"
                raise TypeError(f"{type(struct).__name__}.{name}: {x.dtype}{list(x.shape)} came, expected {expected}")


def checked(init):
    """The __init__ of a struct that also checks the fields, unless JAX or a library above it is the caller."""

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        init(self, *args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if caller not in ("jax", "jaxlib", "flax", "optax", "orbax"):
            check_fields(self)

    return __init__


for _, struct in inspect.getmembers(structs, dataclasses.is_dataclass):
    struct.__init__ = checked(struct.__init__)  # type: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real captures beside the checkout; skips where there is none."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return path


def _lack_of(backend: str) -> str | None:
    """Why this machine cannot run a backend, or None."""
    from bags_jax.ops.backends import choose

    try:
        choose("rasterize", backend)
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture(
    params=["xla", "cpu", pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("tpu", marks=pytest.mark.tpu)]
)
def backend(request) -> str:
    """Every backend of `rasterize` in turn; skipped where this machine cannot run it."""
    problem = _lack_of(request.param)
    if problem:
        pytest.skip(problem)
    return request.param


MAX_MAPS = 20_000  # of the 65 530 memory maps that Linux grants a process (vm.max_map_count)


@pytest.fixture(autouse=True)
def _drop_programs():
    """Frees the compiled programs of this process when there are many.

    Each holds hundreds of memory maps. At the kernel's limit XLA aborts in the middle of the next compilation.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()
        gc.collect()
