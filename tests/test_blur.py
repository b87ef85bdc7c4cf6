"""Kernels per pixel against unfolded patches, and statistics of known kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels import mean_kernel

from bags_jax.blur_model.statistics import kernel_statistics, masked_widths
from bags_jax.ops.blur import blur, tap_moments
from bags_jax.ops.blur.blocks import mean_blocks
from bags_jax.ops.blur.kernels import kernel_side, resize_taps
from bags_jax.ops.blur.reference import apply_kernels, every_kernel
from bags_jax.structs import BlurField, BlurMoments

H, W = 13, 10


def field_of(kernels, mask) -> BlurField:
    """Makes a field of given kernels: their logarithms are the features, the last layer is the identity."""
    num_taps = kernels.shape[0]
    logits = jnp.log(jnp.maximum(jnp.moveaxis(kernels, 0, -1), 1e-30))
    return BlurField(features=logits, weight=jnp.eye(num_taps), bias=jnp.zeros(num_taps), mask=mask)


def random_field(stride: int, side: int, seed: int = 0) -> tuple[jax.Array, BlurField]:
    rng = np.random.default_rng(seed)
    h, w = -(-H // stride), -(-W // stride)
    kernels = rng.random((side * side, h, w))
    image, mask = rng.random((H, W, 3)), rng.random((h, w))
    image, kernels, mask = (jnp.asarray(x, jnp.float32) for x in (image, kernels / kernels.sum(0), mask))
    return image, field_of(kernels, mask)


def blur_unfolded(image, field: BlurField, *, stride: int):
    """Computes the formula patch by patch."""
    every = every_kernel(field)
    side = int(np.sqrt(every.shape[0]))
    padded = jnp.pad(image, ((side // 2, side // 2), (side // 2, side // 2), (0, 0)), mode="edge")
    patches = jnp.stack([padded[i : i + H, j : j + W] for i in range(side) for j in range(side)])
    ys, xs = np.arange(H) // stride, np.arange(W) // stride
    kernels, mask = every[:, ys][:, :, xs], field.mask[ys][:, xs]
    return (mask * jnp.einsum("khw,khwd->dhw", kernels, patches) + (1 - mask) * image.transpose(2, 0, 1)).transpose(
        1, 2, 0
    )


@pytest.mark.parametrize("stride, side", [(1, 3), (1, 5), (2, 5), (4, 3)])
def test_equals_unfolded_patches(stride, side):
    image, field = random_field(stride, side)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=image.shape), jnp.float32)
    with jax.numpy_rank_promotion("allow"):
        expected, pull = jax.vjp(lambda i, f: blur_unfolded(i, f, stride=stride), image, field)
        gradients_expected = pull(weights)
    ours, pull = jax.vjp(lambda i, f: blur(i, f, stride=stride)[0], image, field)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    for a, b in zip(jax.tree.leaves(pull(weights)), jax.tree.leaves(gradients_expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_delta_and_closed_mask_keep_the_image():
    image, field = random_field(1, 5)
    delta = jnp.zeros_like(every_kernel(field)).at[12].set(1.0)
    closed = dataclasses.replace(field, mask=jnp.zeros_like(field.mask))
    np.testing.assert_allclose(blur(image, field_of(delta, field.mask))[0], image, atol=1e-6)
    np.testing.assert_allclose(blur(image, closed)[0], image, atol=1e-6)


def test_tap_reads_the_pixel_at_its_offset():
    image, field = random_field(1, 3)
    right = jnp.zeros_like(every_kernel(field)).at[5].set(1.0)  # dy = 0, dx = +1
    moved = apply_kernels(jnp.moveaxis(image, -1, 0), right, 1)
    np.testing.assert_allclose(moved[:, :, :-1], jnp.moveaxis(image, -1, 0)[:, :, 1:], atol=1e-6)
    np.testing.assert_allclose(
        moved[:, :, -1], jnp.moveaxis(image, -1, 0)[:, :, -1], atol=1e-6
    )  # the border is repeated


def test_patches_are_never_unfolded():
    side, size = 17, 64
    image, kernels = jnp.zeros((size, size, 3)), jnp.zeros((side * side, size // 4, size // 4))
    field = field_of(kernels, jnp.zeros((size // 4, size // 4)))

    def loss(image, field):
        return jnp.sum(blur(image, field, stride=4)[0] ** 2)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(image, field).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    # Unfolded: 289 shifted images of 3 channels. Streaming needs a few images, and the gradient of the kernels.
    assert memory.temp_size_in_bytes < 0.1 * side * side * image.nbytes


def test_statistics_of_known_kernels():
    side = 17
    y, x = np.mgrid[-8:9, -8:9]
    angle = np.radians(30)
    line = np.exp(-0.5 * ((-x * np.sin(angle) + y * np.cos(angle)) / 0.5) ** 2) * (np.hypot(x, y) <= 7)
    shift = np.zeros((side, side))
    shift[8 + 2, 8 - 3] = 1
    disc = (np.hypot(x, y) <= 5).astype(float)
    kernels = np.stack([k / k.sum() for k in (line, shift, disc)]).reshape(3, -1)
    found = kernel_statistics(jnp.asarray(kernels, jnp.float32))
    np.testing.assert_allclose(found.centroid, [[0, 0], [-3, 2], [0, 0]], atol=1e-5)
    np.testing.assert_allclose(found.direction[0], 30, atol=1)
    np.testing.assert_allclose(found.rms_width, [7 / np.sqrt(3), 0, 5 / np.sqrt(2)], atol=0.4)
    assert found.anisotropy[0] > 0.9 and found.anisotropy[2] < 1e-3
    assert np.isfinite(jax.grad(lambda k: kernel_statistics(k).rms_width.sum())(jnp.asarray(kernels[1]))).all()


def test_masked_widths_reach_from_the_pixel_itself():
    kernels = jnp.zeros((9, 1, 2)).at[4, 0, 0].set(1.0).at[5, 0, 1].set(1.0)  # a delta, and a shift by (1, 0)
    moments = jnp.einsum("mk,khw->mhw", tap_moments(3), kernels)
    found = BlurMoments(mask=jnp.full((1, 2), 0.25), centroid=moments[:2], second=moments[2:])
    np.testing.assert_allclose(masked_widths(found), [[0.1, np.hypot(0.5, 0.1)]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda m: masked_widths(m).sum())(found).second).all()


def test_mean_kernel_counts_the_mask():
    _, field = random_field(1, 3)
    mean = mean_kernel(field)
    np.testing.assert_allclose(mean.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(mean[0], np.mean(every_kernel(field)[0] * field.mask), rtol=1e-5)


@pytest.mark.parametrize("side, new_side, zoom", [(9, 17, 2.0), (5, 9, 2.0), (9, 9, 1.0)])
def test_enlarged_logits_widen_the_kernel(side, new_side, zoom):
    y, x = np.mgrid[:side, :side] - side // 2
    width = 0.12 * side
    logits = -0.5 * (x**2 / width**2 + y**2 / (0.7 * width) ** 2).ravel()
    before = kernel_statistics(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
    resized = jax.nn.softmax(jnp.asarray(resize_taps(side, new_side, zoom) @ logits, jnp.float32))
    after = kernel_statistics(resized)
    np.testing.assert_allclose(resized.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(after.rms_width, zoom * before.rms_width, rtol=0.15)  # logits interpolated, not kernels
    np.testing.assert_allclose(after.centroid, 0, atol=1e-5)
    np.testing.assert_allclose(resize_taps(side, new_side, zoom).sum(axis=1), 1.0, rtol=1e-6)


def test_blocks_average_with_the_border_repeated():
    image = jnp.arange(15.0).reshape(3, 5, 1)
    means = mean_blocks(image, 2)[..., 0]
    np.testing.assert_allclose(means, [[3, 5, 6.5], [10.5, 12.5, 14]])
    np.testing.assert_array_equal(mean_blocks(image, 1), image)


@pytest.mark.parametrize("taps", [0, 4, 10, 16])
def test_even_kernel_is_refused(taps):
    with pytest.raises(ValueError, match=f"{taps} kernel taps came"):
        kernel_side(taps)
