"""Which kind of device JAX works on, as far as it can be told when a program is traced."""

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.core import Tracer

P = ParamSpec("P")
R = TypeVar("R")


def current_platform() -> str:
    """The platform of jax.default_device where that is set, else of JAX's default backend: cpu, gpu or tpu."""
    device = jax.config.jax_default_device  # type: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    name = device if isinstance(device, str) else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def follows_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Calls a function with the device of its arrays as the default one, where they were put on another kind of device.

    Within jit and vmap arrays do not say where they are, and nothing is followed.
    """

    @functools.wraps(function)
    def following(*args: P.args, **kwargs: P.kwargs) -> R:
        with _default_device_of(jax.tree.leaves((args, kwargs))):
            return function(*args, **kwargs)

    return following


def _default_device_of(leaves: list) -> contextlib.AbstractContextManager:
    leaves = [x.to_concrete_value() if isinstance(x, Tracer) else x for x in leaves]  # jax.grad's hold arrays
    put = next((x for x in leaves if isinstance(x, jax.Array) and x.committed), None)
    if put is None or any(x is None for x in leaves):
        return contextlib.nullcontext()
    device = min(put.sharding.addressable_devices, key=lambda d: d.id)
    return jax.default_device(device) if device.platform != current_platform() else contextlib.nullcontext()
