"""The blur in C++ and CUDA against XLA. CUDA kernels run on a GPU, or on the PTX emulator."""

import contextlib
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.ops.blur import stream_blur
from bags_jax.ops.toolchain import cpp_build
from tools import ptx_emulator

F = 6
METHODS = ("cpu", "cuda")


@contextlib.contextmanager
def only(method: str):
    """A context in which a backend can run. Without a GPU, CUDA kernels run on the emulator."""
    if problem := (cpp_build if method == "cpu" else ptx_emulator).find_problem():
        pytest.skip(problem)
    with ptx_emulator.emulated() if method == "cuda" else contextlib.nullcontext():
        yield


def layer(height, width, *, side, stride, margin, spread=1.0):
    """Returns image with margin, features, weight, bias, and cotangents of image and moments. Logits exceed +-2."""
    draw = np.random.default_rng(side)
    h, w, num_taps = -(-height // stride), -(-width // stride), side * side
    arrays = (
        draw.random((3, height + 2 * margin, width + 2 * margin)),
        draw.random((h, w, F)),
        draw.normal(size=(F, num_taps)) * spread,
        draw.normal(size=num_taps) * spread,
        draw.normal(size=(3, height, width)),
        draw.normal(size=(5, h, w)),
    )
    *args, d_image, d_moments = [jnp.asarray(x, jnp.float32) for x in arrays]
    return tuple(args), (d_image, d_moments)


def value_and_gradients(args, cotangents, **options):
    """Returns outputs and gradients, not in TF32. Traces again at each call."""

    @jax.jit
    def both(args, cotangents):
        value, pull = jax.vjp(functools.partial(stream_blur, **options), *args)
        return value, pull(cotangents)

    with jax.default_matmul_precision("highest"):
        return both(args, cotangents)


def calls(args, **options) -> int:
    """Counts calls of code outside XLA."""
    return str(jax.make_jaxpr(functools.partial(stream_blur, **options))(*args)).count("ffi_call[")


# Sizes that are not multiples of the stride or of the lanes of a vector; margins around half a kernel; one and several blocks.
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "height, width, stride, side, margin, bound, block_bytes",
    [
        (13, 10, 1, 5, 2, 2.0, 3000),
        (13, 10, 2, 3, 0, 0.0, 600),
        (17, 37, 2, 5, 1, 2.0, 0),
        (14, 19, 3, 7, 4, 2.0, 3000),
        (9, 9, 4, 3, 0, 0.0, 1),
        (5, 40, 1, 17, 8, 5.0, 0),  # the kernel is higher than the image
        (53, 33, 2, 3, 0, 2.0, 0),  # more rows than one thread handles
        (7, 9, 1, 3, 1, 60.0, 0),  # a bound without a floor
    ],
)
def test_equals_xla(method, height, width, stride, side, margin, bound, block_bytes):
    args, cotangents = layer(height, width, side=side, stride=stride, margin=margin)
    options = {"stride": stride, "bound": bound, "margin": margin, "block_bytes": block_bytes}
    assert calls(args, **options, backend="xla") == 0
    expected, expected_gradients = value_and_gradients(args, cotangents, **options, backend="xla")
    with only(method):
        assert calls(args, **options, backend=method) == 1
        outputs, gradients = value_and_gradients(args, cotangents, **options, backend=method)
    np.testing.assert_allclose(outputs[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(outputs[1], expected[1], atol=1e-5 * side**2)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", [1e4, 0.0])
@pytest.mark.parametrize("bound", [0.0, 5.0, 35.0, 60.0, 100.0])
def test_extreme_logits_stay_finite_and_equal_xla(method, bound, spread):
    args, cotangents = layer(8, 8, side=3, stride=1, margin=0, spread=spread)
    with only(method):
        outputs, gradients = value_and_gradients(args, cotangents, stride=1, bound=bound, backend=method)
    expected = value_and_gradients(args, cotangents, stride=1, bound=bound, backend="xla")[0]
    assert all(np.isfinite(x).all() for x in (*outputs, *gradients))
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bound", [0.0, 2.0])
def test_nan_stays_nan(method, bound):
    (planes, features, weight, bias), cotangents = layer(4, 4, side=3, stride=1, margin=0)
    broken = (planes, features.at[1, 2, 0].set(jnp.nan), weight, bias)
    with only(method):
        outputs, gradients = value_and_gradients(broken, cotangents, stride=1, bound=bound, backend=method)
    assert np.isnan(outputs[0][:, 1, 2]).all() and np.isfinite(outputs[0][:, 0]).all()
    assert np.isnan(gradients[1][1, 2]).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stride, channels, num_calls", [(4, 3, 1), (5, 3, 0), (1, 4, 0)])
def test_sizes_without_compiled_code_go_through_xla(method, stride, channels, num_calls):
    (planes, *rest), _ = layer(10, 10, side=3, stride=stride, margin=0)
    planes = jnp.concatenate([planes, planes])[:channels]
    with only(method):
        for backend in (method, "auto"):
            assert calls((planes, *rest), stride=stride, bound=5.0, backend=backend) == num_calls


@pytest.mark.parametrize("method", METHODS)
def test_views_can_be_mapped(method):
    """vmap runs one view after the other."""
    args, _ = layer(6, 8, side=3, stride=2, margin=0)
    planes = jnp.stack([args[0], args[0][::-1], 0.5 * args[0]])

    def brightest(planes):
        return jnp.max(stream_blur(planes, *args[1:], stride=2, bound=2.0, backend=method)[0])

    with only(method), jax.default_matmul_precision("highest"):
        each, gradients = jax.vmap(jax.value_and_grad(brightest))(planes)
        alone, gradient = jax.value_and_grad(brightest)(planes[2])
    np.testing.assert_allclose(each[2], alone, rtol=1e-6)
    np.testing.assert_allclose(gradients[2], gradient, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_repeat_and_number_of_threads_change_no_bit(method, monkeypatch):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU: there is only one thread")
    args, cotangents = layer(53, 33, side=5, stride=2, margin=2)
    with only(method):
        results = []
        for threads in ("1", "2", "2"):
            monkeypatch.setenv("BAGS_JAX_NUM_THREADS", threads)
            results.append(value_and_gradients(args, cotangents, stride=2, bound=5.0, margin=2, backend=method))
    for result in results[1:]:
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(results[0]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="C++ is for CPUs")
def test_the_cpp_can_be_switched_off(monkeypatch):
    args, _ = layer(8, 8, side=3, stride=2, margin=0)
    monkeypatch.setenv("BAGS_JAX_NATIVE", "0")
    assert calls(args, stride=2, bound=2.0) == 0
