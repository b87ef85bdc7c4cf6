"""The streamed blur against the oracle that stores all kernels; memory of the streamed blur."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels import mean_kernel

from bags_jax.blur_model.statistics import (
    kernel_statistics,
    mean_blur,
    pixel_statistics,
    share_from_elsewhere,
    shares,
    view_statistics,
    whole_kernels,
)
from bags_jax.numerics import clip_with_return
from bags_jax.ops.blur import kernel_side, kernels_of, rows_per_block, stream, stream_blur, tap_moments
from bags_jax.ops.blur.blocks import repeat_blocks
from bags_jax.ops.blur.reference import apply_kernels
from bags_jax.structs import BlurField, BlurMoments

F = 6


def layer(height, width, *, side, stride, seed=0):
    """Returns image, features, weight and bias. Logits exceed +-2."""
    rng = np.random.default_rng(seed)
    h, w, num_taps = -(-height // stride), -(-width // stride), side * side
    arrays = (
        rng.random((3, height, width)),
        rng.random((h, w, F)),
        rng.normal(size=(F, num_taps)),
        rng.normal(size=num_taps),
    )
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def naive(planes, features, weight, bias, *, stride, bound):
    logits = features @ weight + bias[None, None]
    logits = clip_with_return(logits, bound) if bound else logits
    kernels = jax.nn.softmax(logits, axis=-1)
    if bound:  # a tap at the lower bound keeps a hundredth of its weight
        floor = 0.99 * jnp.exp(-bound - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        kernels = (kernels - floor) / (1.0 - kernels.shape[-1] * floor)
    moments = jnp.moveaxis(kernels @ tap_moments(kernel_side(bias.shape[0])).T, -1, 0)
    return apply_kernels(planes, jnp.moveaxis(kernels, -1, 0), stride), moments


def value_and_gradients(function, args, cotangents):
    @jax.jit
    def both(args, cotangents):
        value, pull = jax.vjp(function, *args)
        return value, pull(cotangents)

    return both(args, cotangents)


@pytest.mark.parametrize("margin", [1, 2, 3])  # below, at and above half a kernel
@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_read_the_margin(margin, stride):
    """Equals a crop of the blur of the whole image, whose margin has kernels, too."""
    height, width, side = 11, 8, 5
    _, features, weight, bias = layer(height, width, side=side, stride=stride)
    wide = layer(height + 2 * margin, width + 2 * margin, side=side, stride=1)[0]
    oracle_fields = repeat_blocks(jnp.moveaxis(features, -1, 0), stride, height, width)
    around = jnp.pad(oracle_fields, ((0, 0), (margin, margin), (margin, margin)))
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(3, height, width)), jnp.float32)

    def ours(planes):
        return stream_blur(planes, features, weight, bias, stride=stride, bound=2.0, margin=margin, block_bytes=600)[0]

    def oracle(planes):
        filtered = naive(planes, jnp.moveaxis(around, 0, -1), weight, bias, stride=1, bound=2.0)[0]
        return filtered[:, margin:-margin, margin:-margin]

    filtered, (d_planes,) = value_and_gradients(ours, (wide,), cotangent)
    expected, (d_expected,) = value_and_gradients(oracle, (wide,), cotangent)
    np.testing.assert_allclose(filtered, expected, atol=1e-5)
    np.testing.assert_allclose(d_planes, d_expected, atol=1e-5)


def test_an_image_of_another_size_than_the_kernels_is_refused():
    planes, features, weight, bias = layer(8, 9, side=3, stride=2)
    with pytest.raises(ValueError, match="9 x 8 px with a margin of 1 px came with kernels for 5 x 4 blocks of 2 px"):
        stream_blur(planes, features, weight, bias, stride=2, bound=0.0, margin=1)


# Sizes that are not multiples of the stride. 1 KiB: blocks of one or a few rows, the last one incomplete. 0: one block.
@pytest.mark.parametrize(
    "height, width, stride, side, bound, block_bytes",
    [
        (13, 10, 1, 5, 2.0, 3000),
        (13, 10, 2, 3, 0.0, 600),
        (17, 11, 2, 5, 2.0, 0),
        (14, 19, 3, 7, 2.0, 3000),
        (9, 9, 4, 3, 0.0, 1),
    ],
)
@pytest.mark.parametrize("native", ["1", "0"])
def test_equals_stored_kernels(monkeypatch, native, height, width, stride, side, bound, block_bytes):
    monkeypatch.setenv("BAGS_JAX_NATIVE", native)
    args = layer(height, width, side=side, stride=stride)
    ours = functools.partial(stream_blur, stride=stride, bound=bound, block_bytes=block_bytes)
    oracle = functools.partial(naive, stride=stride, bound=bound)
    rng = np.random.default_rng(1)
    cotangents = tuple(jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in jax.eval_shape(oracle, *args))
    (filtered, moments), gradients = value_and_gradients(ours, args, cotangents)
    expected, expected_gradients = value_and_gradients(oracle, args, cotangents)
    np.testing.assert_allclose(filtered, expected[0], atol=1e-5)
    np.testing.assert_allclose(moments, expected[1], atol=1e-5 * side**2)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.max(jnp.abs(b))))


def test_extreme_logits_stay_finite():
    planes, features, weight, bias = layer(8, 8, side=3, stride=1)
    for scale in (1e4, 0.0):
        args = (planes, features * scale, weight, bias * scale)
        outputs, gradients = value_and_gradients(
            functools.partial(stream_blur, stride=1, bound=0.0), args, (jnp.ones((3, 8, 8)), jnp.ones((5, 8, 8)))
        )
        assert all(np.isfinite(x).all() for x in (*outputs, *gradients))


def test_moments_equal_those_of_the_kernels():
    planes, features, weight, bias = layer(9, 7, side=5, stride=1)
    mask = jnp.asarray(np.random.default_rng(3).random((9, 7)), jnp.float32)
    field = BlurField(features, weight, bias, mask, bound=2.0)
    moments = stream_blur(planes, features, weight, bias, stride=1, bound=2.0)[1]
    found = BlurMoments(mask, moments[:2], moments[2:])
    kernels = kernels_of(features @ weight + bias[None, None], 2.0)
    each, mean = kernel_statistics(whole_kernels(kernels, mask)), kernel_statistics(mean_kernel(field))
    for ours, expected in ((pixel_statistics(found), each), (view_statistics(found), mean)):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    squared = jnp.mean(mask * jnp.sum(kernel_statistics(kernels).centroid ** 2, axis=-1))
    np.testing.assert_allclose(mean_blur(found).squared_centroid, squared, rtol=1e-4)


def test_share_from_elsewhere_is_the_least_mask_of_the_same_blur():
    _, features, weight, bias = layer(6, 5, side=3, stride=1)
    mask = jnp.asarray(np.random.default_rng(3).random((6, 5)), jnp.float32)
    kernels = kernels_of(features @ weight + bias[None, None], 2.0)
    found = np.asarray(share_from_elsewhere(BlurField(features, weight, bias, mask, bound=2.0)))
    ring = np.delete(np.asarray(kernels), 4, axis=-1)
    ring = np.insert(ring / ring.sum(-1, keepdims=True), 4, 0.0, axis=-1)  # the kernel without its centre
    np.testing.assert_allclose(
        whole_kernels(kernels, mask), whole_kernels(jnp.asarray(ring), jnp.asarray(found)), atol=1e-6
    )


def test_padding_of_a_photograph_does_not_count():
    """A photograph of 5 x 7 px in an array of 8 x 10, blocks of 2 x 2 px: border blocks count by their inner pixels."""
    draw = np.random.default_rng(4)
    mask, centroid, second = (jnp.asarray(draw.random((n, 4, 5)), jnp.float32) for n in (1, 2, 3))
    found = BlurMoments(mask[0], centroid, second)
    centroids = np.asarray(centroid)
    share = shares((jnp.arange(8) < 5)[:, None] & (jnp.arange(10) < 7)[None, :], 2)
    weights = np.array([2, 2, 1, 0])[:, None] * np.array([2, 2, 2, 1, 0])[None, :] / 35.0
    np.testing.assert_allclose(share, weights, rtol=1e-6)
    mean = np.sum(weights * np.asarray(mask[0]) * centroids, axis=(1, 2))
    np.testing.assert_allclose(view_statistics(found, share).centroid, mean, rtol=1e-5)
    squared = np.sum(weights * np.asarray(mask[0]) * np.sum(centroids**2, axis=0))
    np.testing.assert_allclose(mean_blur(found, share).squared_centroid, squared, rtol=1e-5)
    whole = view_statistics(found, shares(jnp.ones((8, 10), bool), 2)).rms_width
    np.testing.assert_allclose(whole, view_statistics(found).rms_width, rtol=1e-5)


@pytest.mark.parametrize("height, block_bytes, rows", [(100, 1, 1), (100, 40 * 4 * 90, 34), (100, 1 << 30, 100)])
def test_blocks_have_similar_heights(height, block_bytes, rows):
    assert rows_per_block(height, 10, 9, block_bytes) == rows


@pytest.mark.parametrize("stride", [1, 2])
def test_memory_at_full_resolution(stride):
    """2400 x 1600, K = 17, forward and backward: at most 1 GiB beside the images, the features and their gradient."""
    h, w, num_taps = 1600 // stride, 2400 // stride, 17 * 17
    shapes = [(3, 1600, 2400), (h, w, 32), (32, num_taps), (num_taps,)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(*args):
        filtered, moments = stream_blur(*args, stride=stride, bound=5.0)
        return jnp.sum(filtered**2) + jnp.sum(moments**2)

    memory = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*args).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 1 << 30


def test_bias_as_rows_of_the_weight_keeps_its_precision(monkeypatch):
    """Logits and gradients equal those of an added bias, also where a product keeps only 8 bits of each number."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, weight = jax.random.normal(keys[0], (50, 7)), jax.random.normal(keys[1], (7, 25))
    bias, d_logits = 6.0 * jax.random.normal(keys[2], (25,)), jax.random.normal(keys[3], (25, 50))
    summed = stream._logits(x, weight, bias), *stream._logits_gradient(x, weight, d_logits)
    monkeypatch.setattr(stream, "current_platform", lambda: "gpu")
    joined = stream._logits(x, weight, bias), *stream._logits_gradient(x, weight, d_logits)
    for found, expected in zip(joined, summed, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = stream._logits(0.0 * x, weight, bias)
    monkeypatch.setattr(stream, "_product", lambda a, b: _few_bits(a).T @ _few_bits(b).T)
    np.testing.assert_allclose(stream._logits(0.0 * x, weight, bias), alone, atol=6.0 * 2.0**-16)


def _few_bits(x):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
