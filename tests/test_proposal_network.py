"""The Blur Proposal Network: its initial blur, the hand-over between stages, and where gradients must not flow."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork, position_waves
from bags_jax.blur_model.protocol import RATE_GROUPS, BlurModel
from bags_jax.blur_model.statistics import kernel_statistics
from bags_jax.ops.blur.blocks import mean_blocks
from bags_jax.ops.blur.reference import every_kernel
from bags_jax.rendering import Rendered, propose_blur
from bags_jax.schedule import Stage
from bags_jax.structs import Projected

SIZES, STRIDES = (3, 5), (1, 2)
H, W = 9, 12
RGBD = jnp.asarray(np.random.default_rng(0).random((H, W, 4)), jnp.float32)


@functools.cache
def make_network(**options):
    network = BlurProposalNetwork(num_views=3, kernel_sizes=SIZES, width=16, conv_width=8, feature_width=8, **options)
    return network, jax.jit(network.init_params)(jax.random.key(0))


@functools.partial(jax.jit, static_argnames=("network", "view", "head"))
def propose(network, params, *, view: int = 1, head: int = 0, rgbd=RGBD):
    return network.field(params, jnp.int32(view), mean_blocks(rgbd, STRIDES[head]), head=head)


@pytest.mark.parametrize("head", range(2))
def test_field_is_a_distribution_and_a_mask(head):
    network, params = make_network()
    field = propose(network, params, head=head)
    h, w = -(-H // STRIDES[head]), -(-W // STRIDES[head])
    kernels = every_kernel(field)
    assert kernels.shape == (SIZES[head] ** 2, h, w) and field.mask.shape == (h, w)
    np.testing.assert_allclose(kernels.sum(axis=0), 1.0, atol=1e-5)
    assert (kernels >= 0).all() and (field.mask > 0).all() and (field.mask < 1).all()


@pytest.mark.parametrize("head", range(2))
def test_starts_as_delta_with_an_open_mask(head):
    field = propose(*make_network(), head=head)
    assert (every_kernel(field)[SIZES[head] ** 2 // 2] > 0.9).all() and (field.mask > 0.9).all()


def test_published_start_is_uniform_with_half_a_mask():
    network, params = make_network(centre_logit=0.0, mask_logit=0.0, use_table=False, identity_layers=False)
    assert not any(name.startswith("table") for name in params)
    field = propose(network, params, head=1)
    np.testing.assert_allclose(every_kernel(field), 1 / 25, rtol=0.5)
    np.testing.assert_allclose(field.mask, 0.5, atol=0.1)


def test_without_render_features():
    network, params = make_network(use_rgbd=False)
    assert "render_features" not in params
    np.testing.assert_array_equal(
        every_kernel(propose(network, params)), every_kernel(propose(network, params, rgbd=jnp.zeros_like(RGBD)))
    )


@pytest.mark.parametrize(
    "part, names",
    [
        ("use_position", set()),
        ("use_embedding", {"embedding"}),
        ("use_mask", {"mask_heads_0", "mask_heads_1"}),
        ("growing_trunk", set()),
    ],
)
def test_parts_of_the_network_can_be_left_out(part, names):
    """Each switch takes away its own parameters, and nothing else than what it names changes."""
    whole, (network, params) = make_network(use_rgbd=False)[1], make_network(use_rgbd=False, **{part: False})
    assert whole.keys() - params.keys() == names and params.keys() <= whole.keys()
    inputs = whole["trunk_0"]["kernel"].shape[0] - params["trunk_0"]["kernel"].shape[0]
    assert inputs == {"use_position": 16, "use_embedding": 32}.get(part, 0)
    assert network.rate_groups(params).keys() == params.keys()
    after = network.hand_over(params, source=0, target=1, zoom=2.0)
    assert after.keys() == params.keys()
    field, other = propose(network, params), propose(network, params, view=2)
    assert (field.mask == 1).all() == (part == "use_mask")
    assert (np.ptp(field.features.reshape(-1, 16), axis=0).max() < 1e-6) == (part == "use_position")
    assert (np.abs(field.features - other.features).max() < 1e-6) == (part == "use_embedding")
    last = {**params, "trunk_2": {"kernel": 2.0 * params["trunk_2"]["kernel"]}}
    is_deep = bool((propose(network, last).features != field.features).any())
    assert is_deep == (part == "growing_trunk"), "the layer that the second stage adds"


def with_known_blur():
    """Parameters whose first head has a broad kernel, shifted to the right in view 1 only, and another mask."""
    network, params = make_network()
    y, x = np.mgrid[-1:2, -1:2]
    bias = jnp.asarray(-0.8 * (x**2 + y**2).ravel(), jnp.float32)
    table = jnp.zeros((3, 9)).at[1].set(jnp.asarray(0.7 * x.ravel(), jnp.float32))
    kernel_head = {**params["kernel_heads_0"], "bias": bias}
    mask_head = {**params["mask_heads_0"], "bias": jnp.array([-0.7])}
    known = {"kernel_heads_0": kernel_head, "mask_heads_0": mask_head, "table_0": {"embedding": table}}
    return network, {**params, **known}


def test_hand_over_keeps_the_enlarged_kernel_and_the_mask():
    network, params = with_known_blur()
    # The strides differ, and so does the resolution of the fields: a flat render makes both fields the same inside.
    flat = jnp.broadcast_to(jnp.array([0.2, 0.5, 0.7, 0.4]), (H, W, 4))
    after = network.hand_over(params, source=0, target=1, zoom=2.0)
    for view in (0, 1):
        old = propose(network, params, view=view, rgbd=flat)
        new = propose(network, after, view=view, head=1, rgbd=flat)
        old_stats, new_stats = (kernel_statistics(every_kernel(f).mean(axis=(1, 2))) for f in (old, new))
        np.testing.assert_allclose(new_stats.centroid[0] > 0.3, view == 1)
        # Twice as wide, but a kernel of 5 taps ends 2 px from its centre.
        assert 1.3 < new_stats.rms_width / old_stats.rms_width < 2.1
        np.testing.assert_allclose(new.mask.mean(), old.mask.mean(), atol=0.02)
    untouched = [name for name in params if not name.endswith("_1") or name.startswith("trunk")]
    assert all(jax.tree.all(jax.tree.map(lambda a, b: a is b, params[n], after[n])) for n in untouched)


def test_deeper_trunk_is_the_identity_at_first():
    network, params = make_network()
    np.testing.assert_array_equal(params["trunk_2"]["kernel"], np.eye(16))
    del network


def make_rendered(image, depth) -> Rendered:
    """A render without a margin; only image and depth matter to the blur model."""
    nothing = Projected(*(jnp.zeros(shape) for shape in ((1, 2), (1, 3), (1, 3), (1,), (1,), (1, 2))))
    return Rendered(image, depth, jnp.ones(depth.shape), nothing, jnp.int32(0), jnp.int32(0))


@pytest.mark.parametrize("head", range(2))
def test_no_gradient_into_the_render(head):
    network, params = make_network()
    stage = Stage(start=0, stop=1, scale=1.0, kernel_size=SIZES[head], head=head, stride=STRIDES[head])

    def total(image, depth):
        field = propose_blur(network, params, jnp.int32(1), make_rendered(image, depth), stage=stage)
        return jnp.sum(every_kernel(field) ** 2) + jnp.sum(field.mask**2)

    image, depth = RGBD[..., :3], RGBD[..., 3]
    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(image, depth)
    assert not any(gradient.any() for gradient in gradients)
    assert value != total(1.0 - image, depth), "the network should see the render"


def test_the_network_sees_block_means_of_the_render_and_its_depth():
    network, params = make_network()
    stage = Stage(start=0, stop=1, scale=1.0, kernel_size=5, head=1, stride=2)
    depth = 3.0 + 2.0 * (RGBD[..., 3] - jnp.min(RGBD[..., 3])) / jnp.ptp(RGBD[..., 3])
    field = propose_blur(network, params, jnp.int32(1), make_rendered(RGBD[..., :3], depth), stage=stage)
    rgbd = jnp.concatenate([RGBD[..., :3], 0.5 * (depth - 3.0)[..., None]], axis=-1)
    expected = propose(network, params, head=1, rgbd=rgbd)
    np.testing.assert_allclose(field.features, expected.features, atol=1e-5)
    np.testing.assert_allclose(field.mask, expected.mask, atol=1e-6)


def test_mask_does_not_train_the_trunk():
    network, params = make_network()
    gradient = jax.grad(lambda p: jnp.sum(propose(network, p).mask))(params)
    moved = {name for name, part in gradient.items() if any(bool(x.any()) for x in jax.tree.leaves(part))}
    assert moved == {"mask_heads_0"}
    gradient = jax.grad(lambda p: jnp.sum(every_kernel(propose(network, p)) ** 2))(params)
    moved = {name for name, part in gradient.items() if any(bool(x.any()) for x in jax.tree.leaves(part))}
    assert moved == {"trunk_0", "trunk_1", "embedding", "render_features", "kernel_heads_0", "table_0"}


def test_mask_cannot_close_for_good():
    network, params = make_network()

    def mean(bias):
        return jnp.mean(propose(network, {**params, "mask_heads_0": {**params["mask_heads_0"], "bias": bias}}).mask)

    least = 1.0 / (1.0 + math.exp(network.logit_bound))
    value, pull = jax.vjp(mean, jnp.array([-100.0]))
    np.testing.assert_allclose(value, least, rtol=1e-4)
    # A gradient that opens the mask passes, with the slope of the sigmoid at the bound; one that closes it further is 0.
    np.testing.assert_allclose(pull(jnp.float32(-1.0))[0], [-least * (1.0 - least)], rtol=1e-4)
    np.testing.assert_array_equal(pull(jnp.float32(1.0))[0], [0.0])


def test_a_trunk_that_is_0_everywhere_comes_back():
    network, params = make_network()
    params = {**params, "trunk_1": {"kernel": -jnp.abs(params["trunk_1"]["kernel"])}}
    assert not propose(network, params).features.any()
    # Kernels of the left half shall lean left, the others right.
    toward = jnp.where(jnp.arange(W) < W // 2, 1.0, -1.0)[None]
    x = jnp.tile(jnp.array([-1.0, 0.0, 1.0]), 3)[:, None, None]  # of the taps

    def loss(params):
        return jnp.mean(toward * jnp.sum(x * every_kernel(propose(network, params)), axis=0))

    adam = optax.adam(5e-3, eps=1e-15)
    state = adam.init(params)
    step = jax.jit(lambda params, state: adam.update(jax.grad(loss)(params), state))
    for _ in range(60):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    assert propose(network, params).features.std(axis=(0, 1)).max() > 0.1 and loss(params) < -0.1


def test_position_code_tells_pixels_apart():
    rows, columns = np.asarray(position_waves(6)), np.asarray(position_waves(7))
    code = np.concatenate([np.repeat(rows, 7, axis=0), np.tile(columns, (6, 1))], axis=-1).reshape(42, -1)
    assert code.shape == (42, 16) and abs(code).max() <= 1
    distances = np.linalg.norm(code[:, None] - code[None], axis=-1) + 9 * np.eye(42)
    assert distances.min() > 0.1


def test_is_a_blur_model():
    network, params = make_network()
    assert isinstance(network, BlurModel) and hash(network) == hash(make_network()[0])
    groups = network.rate_groups(params)
    assert jax.tree.structure(groups) == jax.tree.structure(params)
    assert set(jax.tree.leaves(groups)) == set(RATE_GROUPS)
