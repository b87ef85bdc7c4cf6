"""The Blur Proposal Network: a blur kernel and a mask for every pixel of a training view (Peng et al. 2024, section 3.2).

Each stage has its own heads on a shared trunk, which is one layer deeper with every stage. Differs from the paper where the
fields of the module say so: kernel logits of each view beside the network, kernels that start as a delta, a mask that starts
open, and kernels that are handed over from stage to stage.

The last layer is not applied here: its K * K numbers for each pixel need more memory than everything else (ops/blur/stream.py
applies it block by block). The trunk works on blocks of rows, and the backward pass recomputes them.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from bags_jax.numerics import clip_with_return, relu_with_return, safe_normalize
from bags_jax.ops.blur.kernels import resize_taps
from bags_jax.ops.convolution import convolve
from bags_jax.platforms import current_platform
from bags_jax.structs import BlurField

POSITION_FREQUENCIES = 4
MOMENTS = "moments of a normalisation"
CPU_TRUNK_PIXELS, DEVICE_TRUNK_PIXELS = 1 << 15, 1 << 18  # pixels per block of the trunk; larger blocks, fewer launches


def position_waves(count: int) -> Float[Array, "count 8"]:
    """Sines and cosines, in 4 octaves, of the position of each row or column in [-1, 1]."""
    position = (np.arange(count) + 0.5) / count * 2.0 - 1.0
    angles = position[:, None] * np.pi * 2.0 ** np.arange(POSITION_FREQUENCIES)[None]
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)


def _identity_init(key, shape, dtype=jnp.float32):
    """Initialises a layer as the identity. Its inputs are outputs of a ReLU, so the next ReLU keeps them unchanged."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def pick_row(table: nn.Embed, index: Int[Array, ""]) -> Float[Array, "F"]:
    """One row of a table. nn.Embed's own lookup fails for a table with a single row."""
    return jnp.take(table.embedding, index, axis=0)


class Weights(nn.Module):
    """The parameters of nn.Dense or nn.Conv without the layer itself."""

    shape: tuple[int, ...]
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "*S"], Float[Array, "Fo"]]:
        kernel = self.param("kernel", self.kernel_init, self.shape)
        if self.bias_init is None:
            return kernel, jnp.zeros(self.shape[-1:])
        return kernel, self.param("bias", self.bias_init, self.shape[-1:])


def lecun_layer(shape: tuple[int, ...], name: str) -> Weights:
    """A convolution whose weights keep the variance and whose biases are 0."""
    return Weights(shape, nn.initializers.lecun_normal(), nn.initializers.zeros, name=name)


class RenderFeatures(nn.Module):
    """Convolutions on the render and its depth."""

    conv_width: int
    feature_width: int
    backend: str = "auto"  # of ops.convolution
    make_layer: Callable[[tuple[int, ...], str], Weights] = lecun_layer  # shape, name -> weights

    @nn.compact
    def __call__(self, rgbd: Float[Array, "h w 4"]) -> Float[Array, "h w F"]:
        narrow, x = self.conv_width, rgbd
        shapes = ((5, 5, 4, narrow), (5, 5, narrow, narrow), (3, 3, narrow, self.feature_width))
        keep = jax.checkpoint_policies.save_only_these_names(MOMENTS)
        for i, shape in enumerate(shapes):
            layer = self.make_layer(shape, f"Conv_{i}")
            convolved = functools.partial(_convolve_normalized if i else _convolve_biased, backend=self.backend)
            x = jax.checkpoint(convolved, policy=keep)(x, *layer()) if i else convolved(x, *layer())
        return x


def _convolve_biased(x, kernel, bias, *, backend: str):
    return convolve(x, kernel, backend=backend) + bias[None, None]


def _convolve_normalized(x, kernel, bias, *, backend: str):
    """ReLU, instance normalisation, convolution. In this order the backward pass keeps one array per layer."""
    x = nn.relu(x)
    mean = checkpoint_name(jnp.mean(x, axis=(0, 1), keepdims=True), MOMENTS)
    # The deviations sum to 0, so the variance has no gradient through this mean.
    squares = (x - jax.lax.stop_gradient(mean)) ** 2
    variance = checkpoint_name(jnp.mean(squares, axis=(0, 1), keepdims=True), MOMENTS)
    return _convolve_biased((x - mean) * jax.lax.rsqrt(variance + 1e-5), kernel, bias, backend=backend)


def run_trunk(
    layers: list[Float[Array, "_Fi _Fo"]],
    view: Float[Array, "E"],
    rows: Float[Array, "h P"],
    columns: Float[Array, "w P"],
    render: Float[Array, "h w F"] | None,
    predict_mask: Callable,
    activate: Callable = nn.relu,
) -> tuple[Float[Array, "h w _Fo"], Float[Array, "h w"]]:
    """Features and mask of all pixels, block of rows by block of rows.

    The first layer is applied to view, row, column and render apart, and the results are added.

    Args:
      layers: of the trunk, in order. The first takes the concatenated inputs.
      view: embedding of the view.
      rows, columns: position codes.
      render: features of the render; None: the network does not see it.
      predict_mask: the mask of a row of pixels from its features.
      activate: applied to the output of each layer.
    """
    first, *deeper = layers
    ends = [view.shape[0], view.shape[0] + rows.shape[1]]
    ends.append(ends[-1] + columns.shape[1])
    of_view, of_row, of_column, of_render = jnp.split(first, ends)
    height, width = rows.shape[0], columns.shape[0]
    from_rows = rows @ of_row + (view @ of_view)[None]
    from_columns = columns @ of_column

    @jax.checkpoint
    def row_features(row):
        x = row[0][None] + from_columns
        if render is not None:
            x = x + row[1] @ of_render
        x = activate(x)
        for layer in deeper:
            x = activate(x @ layer)
        return x, predict_mask(x)

    inputs = (from_rows,) if render is None else (from_rows, render)
    pixels = CPU_TRUNK_PIXELS if current_platform() == "cpu" else DEVICE_TRUNK_PIXELS
    return jax.lax.map(row_features, inputs, batch_size=min(height, -(-pixels // width)))


class BlurProposalNetwork(nn.Module):
    """View, position and render -> kernels and mask, with one pair of heads for each of S stages. A BlurModel."""

    num_views: int
    kernel_sizes: tuple[int, ...]  # of the S stages, px
    width: int = 64  # of the trunk
    embedding_width: int = 32
    conv_width: int = 64
    feature_width: int = 32
    use_rgbd: bool = True
    use_position: bool = True
    use_embedding: bool = True
    use_mask: bool = True  # False: a mask of 1
    growing_trunk: bool = True  # False: all heads stand on all layers
    use_table: bool = True  # learned kernel logits of each view, added to the output of the head
    identity_layers: bool = True  # later trunk layers start as the identity, so that heads can be copied (hand_over)
    centre_logit: float = 6.0  # initial logit of the centre tap above the others; the paper: 0, a uniform kernel
    mask_logit: float = 3.0  # initial logit of the mask; the paper: 0, a mask of one half
    # Early in training the scene is blurrier than the photographs, which drives kernels to deltas and masks to 0. Without a bound
    # they saturate there and never come back. 0: no bound, as in the paper.
    logit_bound: float = 5.0
    backend: str = "auto"  # of ops.convolution

    def setup(self):
        self.embedding = nn.Embed(self.num_views, self.embedding_width) if self.use_embedding else None
        self.render_features = (
            RenderFeatures(self.conv_width, self.feature_width, self.backend) if self.use_rgbd else None
        )
        deeper = _identity_init if self.identity_layers else nn.initializers.he_normal()
        inits = [nn.initializers.he_normal()] * 2 + [deeper] * (len(self.kernel_sizes) - 1)
        inputs = self.use_embedding * self.embedding_width + self.use_position * 4 * POSITION_FREQUENCIES
        inputs += self.use_rgbd * self.feature_width
        widths = [inputs] + [self.width] * len(inits)
        self.trunk = [Weights((widths[i], self.width), init) for i, init in enumerate(inits)]
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.kernel_heads = [Weights((self.width, k * k), small, self._centred(k)) for k in self.kernel_sizes]
        opened = nn.initializers.constant(self.mask_logit)
        if self.use_mask:
            self.mask_heads = [Weights((self.width, 1), small, opened) for _ in self.kernel_sizes]
        if self.use_table:
            zeros = nn.initializers.zeros
            self.table = [nn.Embed(self.num_views, k * k, embedding_init=zeros) for k in self.kernel_sizes]

    def _centred(self, side: int):
        def init(key, shape, dtype=jnp.float32):
            del key
            return jnp.full(shape, -0.5 * self.centre_logit, dtype).at[side * side // 2].add(self.centre_logit)

        return init

    def __call__(self, view: Int[Array, ""], rgbd: Float[Array, "h w 4"], *, head: int) -> BlurField:
        """Predicts the blur of one training view: see BlurModel.field."""
        height, width, _ = rgbd.shape
        mask_head = self.mask_heads[head]() if self.use_mask else ()
        features, mask = run_trunk(
            [layer()[0] for layer in self.trunk[: 2 + head if self.growing_trunk else None]],
            jnp.zeros(0) if self.embedding is None else pick_row(self.embedding, view),
            position_waves(height) if self.use_position else jnp.zeros((height, 0)),
            position_waves(width) if self.use_position else jnp.zeros((width, 0)),
            None if self.render_features is None else self.render_features(rgbd),
            lambda features: self._mask(features, *mask_head) if mask_head else jnp.ones(features.shape[:1]),
            activate=relu_with_return,
        )
        weight, bias = self.kernel_heads[head]()
        if self.use_table:
            bias = bias + pick_row(self.table[head], view)
        return BlurField(features=features, weight=weight, bias=bias, mask=mask, bound=self.logit_bound)

    def _mask(self, features: Float[Array, "w F"], weight, bias) -> Float[Array, "w"]:
        """The mask. With a logit_bound, the mask loss cannot close it for good where there is little blur.

        The head then sees stop-gradient features normalised to length 1, so that one Adam step moves the logit by about the
        learning rate.
        """
        if not self.logit_bound:
            return jax.nn.sigmoid((features @ weight)[:, 0] + bias)
        logits = (safe_normalize(jax.lax.stop_gradient(features)) @ weight)[:, 0] + bias
        return jax.nn.sigmoid(clip_with_return(logits, self.logit_bound))

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
        """Starts head `target` from the kernels of head `source`, enlarged by the ratio of the image scales."""
        resize = jnp.asarray(resize_taps(self.kernel_sizes[source], self.kernel_sizes[target], zoom))
        head = params[f"kernel_heads_{source}"]
        update = {
            f"kernel_heads_{target}": {"kernel": head["kernel"] @ resize.T, "bias": resize @ head["bias"]},
        }
        if self.use_mask:  # copied, because a buffer that appears twice in the state cannot be donated
            update[f"mask_heads_{target}"] = jax.tree.map(jnp.copy, params[f"mask_heads_{source}"])
        if self.use_table:
            update[f"table_{target}"] = {"embedding": params[f"table_{source}"]["embedding"] @ resize.T}
        return {**params, **update}

    @nn.nowrap
    def rate_groups(self, params: Any) -> dict:
        """Returns the learning-rate group of each array: the tables and the mask heads have rates of their own."""
        tables = {f"table_{head}": "table" for head in range(len(self.kernel_sizes))}
        masks = {f"mask_heads_{head}": "mask" for head in range(len(self.kernel_sizes))}
        groups = {**tables, **masks}
        return {name: jax.tree.map(lambda _, n=name: groups.get(n, "network"), part) for name, part in params.items()}
