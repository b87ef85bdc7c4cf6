"""The platform: the device of arrays comes before the default device, which comes before the default backend."""

import jax
import jax.numpy as jnp
import pytest
from splats import HEIGHT, WIDTH, make_splats

from bags_jax.ops.backends import choose
from bags_jax.ops.toolchain import cuda_launch
from bags_jax.platforms import current_platform
from bags_jax.splatting import rasterization

CAPACITY = 2047  # of no other test, which must not reuse traces of the pretended machine


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """Pretends that JAX has a GPU beside the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cuda_launch, "find_route", lambda: cuda_launch.Found(cuda_launch.XLA, ""))


def test_the_default_device_counts(beside_a_gpu):
    assert current_platform() == "gpu" and choose("rasterize") == "cuda"
    with jax.default_device(jax.devices("cpu")[0]):
        assert current_platform() == "cpu" and choose("rasterize") in ("cpu", "xla")
    with jax.default_device("cpu"):
        assert current_platform() == "cpu"


@pytest.mark.parametrize("how", ["default device", "arrays"])
def test_arrays_on_the_cpu_of_a_machine_with_a_gpu(how, beside_a_gpu):
    """Are drawn on the CPU: it has no CUDA kernels."""
    device = jax.devices("cpu")[0]
    splats = make_splats()
    draw = lambda splats: rasterization(*splats, WIDTH, HEIGHT, max_intersections=CAPACITY)[0]
    if how == "arrays":
        image = draw(jax.device_put(splats, device))
    else:
        with jax.default_device(device):
            image = draw(splats)
    assert image.max() > 0.5 and next(iter(image.devices())) == device


def test_gradients_follow_arrays(beside_a_gpu):
    """Also in the backward pass, which runs after the call."""
    means, *others = jax.device_put(tuple(make_splats()), jax.devices("cpu")[0])
    draw = lambda means: rasterization(means, *others, WIDTH, HEIGHT, max_intersections=CAPACITY)[0].sum()
    gradient = jax.grad(draw)(means)
    assert jnp.isfinite(gradient).all() and gradient.any()


def test_constants_of_a_program_are_not_followed(beside_a_gpu):
    """Its arguments decide where a program runs."""
    means, *others = jax.device_put(tuple(make_splats()), jax.devices("cpu")[0])
    draw = lambda means: rasterization(means, *others, WIDTH, HEIGHT, max_intersections=CAPACITY)[0]
    assert "bags_jax_blend" not in jax.jit(draw).lower(means).as_text()
