"""The CUDA kernels of the blur, on an emulator or a GPU, against the same pass by XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulated import emulated

from bags_jax.blur_stream import rows_cuda, stream_blur
from bags_jax.blur_stream.kernels import Plan
from bags_jax.cuda import STRIDES

F = 6


def layer(height, width, *, side, stride, margin, spread=1.0):
    """Image with its margin, features, weight, bias, and cotangents of image and moments; logits reach beyond +-2."""
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
    """Outputs and gradients; traced anew, so that it counts where it was called."""

    @jax.jit
    def both(args, cotangents):
        value, pull = jax.vjp(functools.partial(stream_blur, **options), *args)
        return value, pull(cotangents)

    return both(args, cotangents)


def launches(args, **options) -> int:
    return str(jax.make_jaxpr(functools.partial(stream_blur, **options))(*args)).count("ffi_call[")


# Sizes that are no multiple of the stride; margins of less than half a kernel, as much and more; one block, and several.
@pytest.mark.parametrize(
    "height, width, stride, side, margin, bound, block_bytes",
    [
        (13, 10, 1, 5, 2, 2.0, 3000),
        (13, 10, 2, 3, 0, 0.0, 600),
        (17, 37, 2, 5, 1, 2.0, 0),
        (14, 19, 3, 7, 4, 2.0, 3000),
        (9, 9, 4, 3, 0, 0.0, 1),
        (5, 40, 1, 17, 8, 5.0, 0),  # kernels reach further than the image is high
    ],
)
def test_equals_the_pass_by_xla(height, width, stride, side, margin, bound, block_bytes):
    args, cotangents = layer(height, width, side=side, stride=stride, margin=margin)
    options = {"stride": stride, "bound": bound, "margin": margin, "block_bytes": block_bytes}
    expected, expected_gradients = value_and_gradients(args, cotangents, **options)
    with emulated():
        assert launches(args, **options) == 1
        outputs, gradients = value_and_gradients(args, cotangents, **options)
    np.testing.assert_allclose(outputs[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(outputs[1], expected[1], atol=1e-5 * side**2)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("spread", [1e4, 0.0])
def test_nothing_is_lost_in_extreme_logits(spread):
    args, cotangents = layer(8, 8, side=3, stride=1, margin=0, spread=spread)
    with emulated():
        outputs, gradients = value_and_gradients(args, cotangents, stride=1, bound=0.0)
    expected = value_and_gradients(args, cotangents, stride=1, bound=0.0)[0]
    assert all(np.isfinite(x).all() for x in (*outputs, *gradients))
    for a, b in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("bound", [0.0, 2.0])
def test_what_is_no_number_shows(bound):
    (planes, features, weight, bias), cotangents = layer(4, 4, side=3, stride=1, margin=0)
    broken = (planes, features.at[1, 2, 0].set(jnp.nan), weight, bias)
    with emulated():
        outputs, gradients = value_and_gradients(broken, cotangents, stride=1, bound=bound)
    assert np.isnan(outputs[0][:, 1, 2]).all() and np.isfinite(outputs[0][:, 0]).all()
    assert np.isnan(gradients[1][1, 2]).any()


def test_what_there_are_no_kernels_for_goes_through_xla():
    with emulated():
        assert rows_cuda.can_run(Plan(side=3, stride=STRIDES[-1], bound=5.0, rows=1), 3)
        assert not rows_cuda.can_run(Plan(side=3, stride=STRIDES[-1] + 1, bound=5.0, rows=1), 3)
        assert not rows_cuda.can_run(Plan(side=3, stride=1, bound=5.0, rows=1), 4)
    args, _ = layer(8, 8, side=3, stride=2, margin=0)
    if jax.default_backend() != "gpu":
        assert launches(args, stride=2, bound=2.0) == 0  # no GPU here


def test_views_can_be_mapped():
    """Under vmap, too: one view after the other."""
    args, _ = layer(6, 8, side=3, stride=2, margin=0)
    planes = jnp.stack([args[0], args[0][::-1], 0.5 * args[0]])

    def sharpest(planes):
        return jnp.max(stream_blur(planes, *args[1:], stride=2, bound=2.0)[0])

    with emulated():
        each, gradients = jax.vmap(jax.value_and_grad(sharpest))(planes)
        alone, gradient = jax.value_and_grad(sharpest)(planes[2])
    np.testing.assert_allclose(each[2], alone, rtol=1e-6)
    np.testing.assert_allclose(gradients[2], gradient, atol=1e-6)
