"""The network as the authors run it: shapes, first weights, position code, and kernels and masks from known weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.protocol import BlurModel, check_blur_model
from bags_jax.blur_model.published_network import PublishedNetwork, layers_of_heads, position_code
from bags_jax.ops.blur.reference import every_kernel

H, W = 6, 9
RGBD = jnp.asarray(np.random.default_rng(0).random((H, W, 4)), jnp.float32)


@functools.cache
def make_network(networks=(0, 0, 0), **options):
    options = {"kernel_sizes": (5, 9, 17)[: len(networks)], **options}
    network = PublishedNetwork(num_views=40, layers=layers_of_heads(networks), **options)
    return network, jax.jit(network.init_params)(jax.random.key(0))


def shapes_of(params):
    return {"/".join(key.key for key in path): x.shape for path, x in jax.tree_util.tree_flatten_with_path(params)[0]}


def test_layers_grow_by_one_with_each_scale_and_the_second_network_has_two():
    assert layers_of_heads((0, 0, 0)) == (1, 2, 3)
    assert layers_of_heads((0, 0, 0, 1)) == (1, 2, 3, 2)
    assert layers_of_heads((0, 0, 1)) == (1, 2, 2)


def test_shapes_of_all_parameters():
    """80 inputs: 32 of the view, 16 of the position, 32 of the render. Only the convolutions on the render have biases."""
    assert shapes_of(make_network()[1]) == {
        "embedding/embedding": (40, 32),
        "render_features/Conv_0/kernel": (5, 5, 4, 64),
        "render_features/Conv_0/bias": (64,),
        "render_features/Conv_1/kernel": (5, 5, 64, 64),
        "render_features/Conv_1/bias": (64,),
        "render_features/Conv_2/kernel": (3, 3, 64, 32),
        "render_features/Conv_2/bias": (32,),
        "trunk_0/kernel": (80, 64),
        "trunk_1/kernel": (64, 64),
        "trunk_2/kernel": (64, 64),
        "kernel_heads_0/kernel": (64, 25),
        "kernel_heads_1/kernel": (64, 81),
        "kernel_heads_2/kernel": (64, 289),
        "mask_heads_0/kernel": (64, 1),
        "mask_heads_1/kernel": (64, 1),
        "mask_heads_2/kernel": (64, 1),
    }
    mixed = shapes_of(make_network((0, 0, 1), use_rgbd=False, kernel_sizes=(5, 9, 5))[1])
    assert mixed["trunk_0/kernel"] == (48, 64) and "trunk_2/kernel" not in mixed
    assert mixed["kernel_heads_2/kernel"] == (64, 25)
    assert not any(name.startswith("render_features") for name in mixed)


def test_first_weights_are_those_of_pytorch():
    """Uniform within +- 1 / sqrt(fan-in), variance 1 / (3 fan-in), biases too; the embedding is normal (0, 1)."""
    params = make_network()[1]
    for name, shape in shapes_of(params).items():
        values = np.asarray(functools.reduce(lambda tree, key: tree[key], name.split("/"), params))
        if name == "embedding/embedding":
            np.testing.assert_allclose([values.mean(), values.std()], [0.0, 1.0], atol=0.1)
            assert np.abs(values).max() > 2.5
            continue
        kernel = shapes_of(params)[name.replace("bias", "kernel")]
        bound = np.prod(kernel[:-1]) ** -0.5
        assert 0.8 * bound < np.abs(values).max() <= bound, name
        if np.prod(shape) > 1000:
            np.testing.assert_allclose(values.var(), bound**2 / 3, rtol=0.1, err_msg=name)
            np.testing.assert_allclose(values.mean(), 0.0, atol=0.1 * bound, err_msg=name)


def test_position_code_has_the_rates_of_the_authors():
    code = np.asarray(position_code(8))
    assert code.shape == (8, 8)
    np.testing.assert_allclose(code[0], [0, 1] * 4, atol=1e-7)
    angle = 3 * 2 * np.pi / 8  # row 3 of 8
    expected = [f(angle * rate) for rate in (1, 0.1, 0.01, 0.001) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(code[3], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(position_code(800)[300], code[3], atol=1e-5)  # it depends on the share of the side alone


@pytest.mark.parametrize("head", range(4))
def test_kernels_and_masks_follow_from_the_weights(head):
    """A plain computation, pixel by pixel, with the same weights."""
    network, params = make_network((0, 0, 0, 1), use_rgbd=False, kernel_sizes=(3, 5, 7, 3))
    field = jax.jit(network.field, static_argnames="head")(params, jnp.int32(7), RGBD, head=head)
    rows, columns = np.asarray(position_code(H)), np.asarray(position_code(W))
    y, x = 4, 6
    features = np.concatenate([params["embedding"]["embedding"][7], rows[y], columns[x]])
    for layer in range((1, 2, 3, 2)[head]):
        features = np.maximum(features @ np.asarray(params[f"trunk_{layer}"]["kernel"]), 0.0)
    logits = features @ np.asarray(params[f"kernel_heads_{head}"]["kernel"])
    kernel = np.exp(logits - logits.max())
    np.testing.assert_allclose(every_kernel(field)[:, y, x], kernel / kernel.sum(), rtol=1e-4)
    mask = features @ np.asarray(params[f"mask_heads_{head}"]["kernel"])
    np.testing.assert_allclose(field.mask[y, x], 1.0 / (1.0 + np.exp(-mask[0])), rtol=1e-4)
    assert field.bound == 0.0 and not np.asarray(field.bias).any()


@pytest.mark.slow
def test_mask_and_kernels_train_trunk_embedding_and_convolutions():
    network, params = make_network(conv_width=8, feature_width=8)
    of_mask = jax.grad(lambda p: jnp.sum(network.field(p, jnp.int32(1), RGBD, head=1).mask))(params)
    moved = {name for name, part in of_mask.items() if any(bool(x.any()) for x in jax.tree.leaves(part))}
    assert moved == {"embedding", "render_features", "trunk_0", "trunk_1", "mask_heads_1"}


def test_is_a_blur_model_whose_heads_start_anew():
    network, params = make_network()
    assert isinstance(network, BlurModel) and hash(network) == hash(PublishedNetwork(40, (5, 9, 17), (1, 2, 3)))
    check_blur_model(network)
    groups = network.rate_groups(params)
    assert jax.tree.structure(groups) == jax.tree.structure(params) and set(jax.tree.leaves(groups)) == {"network"}
    assert network.hand_over(params, source=0, target=1, zoom=2.0) is params
