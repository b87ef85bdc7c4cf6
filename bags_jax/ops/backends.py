"""Chooses the implementation of an operator: one ordered table of operators and backends.

cpu    C++ (toolchain/cpp_build.py), compiled at first use; the convolution is plain JAX
cuda   CUDA kernels for NVIDIA GPUs, shipped as PTX (toolchain/cuda_launch.py)
tpu    Pallas kernels
xla    plain JAX, on every platform
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

from bags_jax.errors import UserError
from bags_jax.ops.toolchain import cpp_build, cuda_launch
from bags_jax.platforms import current_platform

AUTO = "auto"


class Implementation(NamedTuple):
    """One cell of the table."""

    platform: str  # platform of JAX that it is for, as current_platform() names it; "": all
    find_problem: Callable[[], str]  # reason why this machine cannot run it; "": it can


def _find_problem_with_cpu() -> str:
    return "" if current_platform() == "cpu" else f"JAX runs on {current_platform()}: set JAX_PLATFORMS=cpu"


def _find_problem_with_pallas() -> str:
    from bags_jax.ops.rasterize.tpu.binding import find_problem  # imports Pallas, which is slow

    return find_problem()


CPP = Implementation("cpu", cpp_build.find_problem)
CUDA = Implementation("gpu", cuda_launch.find_problem)
PALLAS = Implementation("tpu", _find_problem_with_pallas)
XLA = Implementation("", lambda: "")

# The best implementation of an operator first. An operator without a row for a backend runs on XLA there.
TABLE: dict[str, dict[str, Implementation]] = {
    "rasterize": {"cpu": CPP, "cuda": CUDA, "tpu": PALLAS, "xla": XLA},
    "see": {"cuda": CUDA, "xla": XLA},
    "blur": {"cpu": CPP, "cuda": CUDA, "xla": XLA},
    "ssim": {"cpu": CPP, "cuda": CUDA, "xla": XLA},
    "convolution": {"cpu": Implementation("cpu", _find_problem_with_cpu), "xla": XLA},
}
BACKENDS = tuple(dict.fromkeys(name for row in TABLE.values() for name in row))  # names of all backends


def choose(operator: str, backend: str = AUTO, *, unsupported: str = "") -> str:
    """Returns the name of the backend that an operator runs on.

    Args:
      operator: row of TABLE.
      backend: "auto" takes the best one of this machine and warns once why a better one cannot be used. This machine
        must be able to run any other name. An operator without code for the name then runs on "xla".
      unsupported: why only "xla" has code for these shapes; "": every implementation has.
    Raises:
      UserError: an unknown backend, or one that this machine cannot run.
    """
    if backend not in (AUTO, *BACKENDS):
        raise UserError(f"backend={backend!r} came, expected one of {', '.join((AUTO, *BACKENDS))}")
    row = TABLE[operator]
    if backend == AUTO:
        name, problems = _find_best(row)
        for better, problem in problems.items():
            if problem != cpp_build.FORBIDDEN:  # the user's own choice needs no warning
                _warn_once(f"backend {better!r} cannot be used, plain XLA is slower: {problem}")
    else:
        if problem := (row.get(backend) or _find(backend)).find_problem():
            raise UserError(f"backend={backend!r} cannot be used: {problem}; backend='auto' always works")
        name = backend if backend in row else "xla"
    if unsupported and name != "xla":
        _warn_once(f"{operator} runs in plain XLA, which is slower: {unsupported}")
        return "xla"
    return name


def _find(backend: str) -> Implementation:
    """Returns the implementation of a backend in the first operator that has one."""
    return next(row[backend] for row in TABLE.values() if backend in row)


def _find_best(row: dict[str, Implementation]) -> tuple[str, dict[str, str]]:
    """Returns the first backend that this machine can run, and the problems of better ones for its platform."""
    problems = {}
    for name, implementation in row.items():
        if implementation.platform in ("", current_platform()):
            problem = implementation.find_problem()
            if not problem:
                return name, problems
            problems[name] = problem
    raise AssertionError("the last implementation of a row runs everywhere")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(f"bags_jax: {message}", stacklevel=4)


def explain(operator: str, backend: str) -> str:
    """Returns why `choose(operator)` does not take a backend on this machine; "" for the one that it takes."""
    row = TABLE[operator]
    if backend not in row:
        return "not implemented: runs on xla"
    platform, find_problem = row[backend]
    if platform not in ("", current_platform()):
        return f"JAX runs on {current_platform()}, needs {platform}"
    if problem := find_problem():
        return problem
    best, _ = _find_best(row)
    return "" if backend == best else f"{best} is faster here"


def describe() -> str:
    """Returns the table as text: a line for each operator and backend with "used" or the reason why it is not."""
    lines = [f"{'operator':<12} {'backend':<8} on {current_platform()}"]
    for operator, row in TABLE.items():
        lines += [f"{operator:<12} {backend:<8} {explain(operator, backend) or 'used'}" for backend in row]
    return "\n".join(lines)
