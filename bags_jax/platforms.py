"""The platform that JAX uses, as far as it is known while a program is traced."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.core import Tracer

P = ParamSpec("P")
R = TypeVar("R")


def current_platform() -> str:
    """Returns the platform of jax.default_device if set, else of JAX's default backend: cpu, gpu or tpu."""
    device = jax.config.jax_default_device  # type: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    name = device if isinstance(device, str) else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def count_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_host_memory() -> int | None:
    """Returns the bytes of memory of this machine that are available; None: not known."""
    table = pathlib.Path("/proc/meminfo")
    if not table.is_file():
        return None
    rows = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return 1024 * int(rows["MemAvailable"].split()[0])


def find_free_memory() -> int | None:
    """Returns the bytes that a device of this machine has for training; None: not known."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return find_host_memory() if jax.default_backend() == "cpu" else None


def follows_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a function to run with the device of its arrays as default device, if they are on another platform.

    Within jit and vmap the device of arrays is unknown and the default device stays.
    """

    @functools.wraps(function)
    def following(*args: P.args, **kwargs: P.kwargs) -> R:
        with _default_device_of(jax.tree.leaves((args, kwargs))):
            return function(*args, **kwargs)

    return following


def _default_device_of(leaves: list) -> contextlib.AbstractContextManager:
    leaves = [
        x.to_concrete_value() if isinstance(x, Tracer) else x for x in leaves
    ]  # the tracers of jax.grad hold arrays
    put = next((x for x in leaves if isinstance(x, jax.Array) and x.committed), None)
    if put is None or any(x is None for x in leaves):
        return contextlib.nullcontext()
    device = min(put.sharding.addressable_devices, key=lambda d: d.id)
    return jax.default_device(device) if device.platform != current_platform() else contextlib.nullcontext()
