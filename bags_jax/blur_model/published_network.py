"""The Blur Proposal Network as the authors of BAGS run it: `blur.published_network=True`.

It differs from ours in its position code, its number of layers, heads without biases, and its first weights, which are those
of PyTorch. Kernels therefore start nearly uniform, and masks near one half. Border and depth are no part of a network: see
`blur.zero_border` and `blur.ray_depth`.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.blur_model.proposal_network import RenderFeatures, Weights, pick_row, run_trunk
from bags_jax.structs import BlurField

POSITION_RATES = (1.0, 0.1, 0.01, 0.001)
POSITION_WIDTH = 2 * len(POSITION_RATES)  # of rows, and again of columns
SINGLE_SCALE_LAYERS = 2  # of the trunk of the second network
UNIFORM = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")  # PyTorch's default: +- 1 / sqrt(fan-in)


def position_code(count: int) -> Float[Array, "count 8"]:
    """Sine and cosine by turns of the position of each row or column: its index times 2 pi / count, at four rates."""
    position = 2.0 * jnp.pi / count * jnp.arange(count, dtype=jnp.float32)
    angles = position[:, None] * jnp.asarray(POSITION_RATES)[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(count, POSITION_WIDTH)


def layers_of_heads(networks: tuple[int, ...]) -> tuple[int, ...]:
    """Trunk layers below each head: one more for each image scale; in the second network (1) always 2."""
    return tuple(SINGLE_SCALE_LAYERS if network else 1 + head for head, network in enumerate(networks))


def uniform_layer(shape: tuple[int, ...], name: str) -> Weights:
    """A convolution with PyTorch's first weights and biases, all within +- 1 / sqrt(fan-in)."""
    bound = 1.0 / math.sqrt(math.prod(shape[:-1]))

    def bias_init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Weights(shape, UNIFORM, bias_init, name=name)


class PublishedNetwork(nn.Module):
    """View, position and render -> kernels and mask, with one pair of heads for each of S stages. A BlurModel."""

    num_views: int
    kernel_sizes: tuple[int, ...]  # of the S stages, px
    layers: tuple[int, ...]  # trunk layers below the heads of each stage
    width: int = 64  # of the trunk
    embedding_width: int = 32
    conv_width: int = 64
    feature_width: int = 32
    use_rgbd: bool = True
    backend: str = "auto"  # of ops.convolution

    def setup(self):
        self.embedding = nn.Embed(self.num_views, self.embedding_width, embedding_init=nn.initializers.normal(1.0))
        self.render_features = (
            RenderFeatures(self.conv_width, self.feature_width, self.backend, uniform_layer) if self.use_rgbd else None
        )
        inputs = self.embedding_width + 2 * POSITION_WIDTH + self.use_rgbd * self.feature_width
        widths = [inputs] + [self.width] * max(self.layers)
        self.trunk = [Weights((widths[i], self.width), UNIFORM) for i in range(max(self.layers))]
        self.kernel_heads = [Weights((self.width, k * k), UNIFORM) for k in self.kernel_sizes]
        self.mask_heads = [Weights((self.width, 1), UNIFORM) for _ in self.kernel_sizes]

    def __call__(self, view: Int[Array, ""], rgbd: Float[Array, "h w 4"], *, head: int) -> BlurField:
        """Predicts the blur of one training view: see BlurModel.field."""
        height, width, _ = rgbd.shape
        mask_weight, _ = self.mask_heads[head]()
        features, mask = run_trunk(
            [layer()[0] for layer in self.trunk[: self.layers[head]]],
            pick_row(self.embedding, view),
            position_code(height),
            position_code(width),
            None if self.render_features is None else self.render_features(rgbd),
            lambda features: jax.nn.sigmoid((features @ mask_weight)[:, 0]),
        )
        weight, no_bias = self.kernel_heads[head]()
        return BlurField(features=features, weight=weight, bias=no_bias, mask=mask)

    def every_head(self, view: Int[Array, ""], rgbd: Float[Array, "h w 4"]) -> list[BlurField]:
        """The fields of all heads: `init_params` calls it, so that every parameter exists from the start."""
        return [self(view, rgbd, head=head) for head in range(len(self.kernel_sizes))]

    @nn.nowrap
    def init_params(self, key: Array) -> dict:
        """Returns the parameters of all heads."""
        variables = self.init(key, jnp.int32(0), jnp.zeros((16, 16, 4)), method=self.every_head)
        return dict(variables["params"])

    @nn.nowrap
    def field(self, params: Any, view: Int[Array, ""], rgbd: Float[Array, "h w 4"], *, head: int) -> BlurField:
        """Proposes the blur of one training view: see BlurModel.field."""
        field = self.apply({"params": params}, view, rgbd, head=head)
        assert isinstance(field, BlurField)  # for the type checker: flax says Any or a tuple
        return field

    @nn.nowrap
    def hand_over(self, params: Any, *, source: int, target: int, zoom: float) -> dict:
        """Returns the parameters unchanged: in the authors' network each head starts from its own first weights."""
        del source, target, zoom
        return params

    @nn.nowrap
    def rate_groups(self, params: Any) -> dict:
        """All parameters have the rate of the network."""
        return jax.tree.map(lambda _: "network", params)
