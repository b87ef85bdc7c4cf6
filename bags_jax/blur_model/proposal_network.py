"""The Blur Proposal Network: a blur kernel and a mask for every pixel of a training view (Peng et al. 2024, section 3.2).

Each training stage has its own heads on a shared trunk, which is one layer deeper with every stage. Differs from the paper
where the fields of the module say so: a table of kernel logits per view, kernels that start as a delta, a mask that starts
open, kernels handed over from stage to stage, and a field that may be coarser than the image.

The last layer is not applied here: its K * K numbers a pixel are more than all else together (blur_stream/). What works on
single pixels runs over blocks of rows and is made again for the gradients.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.numerics import clip_with_return, safe_normalize
from bags_jax.ops.blur.blocks import mean_blocks
from bags_jax.ops.blur.kernels import resize_taps
from bags_jax.ops.convolution.cpu import convolve
from bags_jax.platforms import current_platform
from bags_jax.structs import BlurField

POSITION_FREQUENCIES = 4
CPU_TRUNK_PIXELS, DEVICE_TRUNK_PIXELS = 1 << 15, 1 << 18  # that the trunk works on at a time; more is fewer launches


def position_waves(count: int) -> Float[Array, "count 8"]:
    """Sines and cosines of the position of each row or column in [-1, 1], 4 octaves: the two codes side by side are a pixel's."""
    position = (jnp.arange(count) + 0.5) / count * 2.0 - 1.0
    angles = position[:, None] * jnp.pi * 2.0 ** jnp.arange(POSITION_FREQUENCIES)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _identity_init(key, shape, dtype=jnp.float32):
    """A layer that does nothing: its inputs are outputs of a ReLU, and so another ReLU keeps them."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def _row(table: nn.Embed, index: Int[Array, ""]) -> Float[Array, "F"]:
    """One row; nn.Embed's own lookup fails where the table has no other."""
    return jnp.take(table.embedding, index, axis=0)


class Weights(nn.Module):
    """The parameters of nn.Dense or nn.Conv, for a layer that is applied elsewhere."""

    shape: tuple[int, ...]
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "*S"], Float[Array, "Fo"]]:
        kernel = self.param("kernel", self.kernel_init, self.shape)
        if self.bias_init is None:
            return kernel, jnp.zeros(self.shape[-1:])
        return kernel, self.param("bias", self.bias_init, self.shape[-1:])


class RenderFeatures(nn.Module):
    """Convolutions on the render and its depth: what there is to be blurred."""

    conv_width: int
    feature_width: int

    @nn.compact
    def __call__(self, rgbd: Float[Array, "h w 4"]) -> Float[Array, "h w F"]:
        narrow, x = self.conv_width, rgbd
        shapes = ((5, 5, 4, narrow), (5, 5, narrow, narrow), (3, 3, narrow, self.feature_width))
        for i, shape in enumerate(shapes):
            layer = Weights(shape, nn.initializers.lecun_normal(), nn.initializers.zeros, name=f"Conv_{i}")
            x = jax.checkpoint(_convolve_normalized)(x, *layer()) if i else _convolve_biased(x, *layer())
        return x


def _convolve_biased(x, kernel, bias):
    return convolve(x, kernel) + bias[None, None]


def _convolve_normalized(x, kernel, bias):
    """ReLU, instance normalisation, convolution: in this order, so that the gradients keep one array a layer."""
    x = nn.relu(x)
    mean, variance = jnp.mean(x, axis=(0, 1), keepdims=True), jnp.var(x, axis=(0, 1), keepdims=True)
    return _convolve_biased((x - mean) * jax.lax.rsqrt(variance + 1e-5), kernel, bias)


class BlurProposalNetwork(nn.Module):
    """View, position and render -> kernels and mask, with one pair of heads for each of S stages."""

    num_views: int
    kernel_sizes: tuple[int, ...]  # of the S stages
    width: int = 64  # of the trunk
    embedding_width: int = 32
    conv_width: int = 64
    feature_width: int = 32
    use_rgbd: bool = True
    use_table: bool = True  # learned kernel logits of each view, added to the head's output
    hand_over: bool = True  # later trunk layers start as the identity, so that heads can be copied (hand_over below)
    centre_logit: float = 6.0  # start of the centre tap above the others; the paper's 0 is a uniform kernel
    mask_logit: float = 3.0  # start of the mask; the paper's 0 is a mask of one half
    # A young scene is blurrier than the photographs, which drives kernels to deltas and masks to 0. Unbounded, they saturate there
    # and never come back when there is blur to explain. 0: no bound (the paper).
    logit_bound: float = 5.0
    linear_light: bool = True  # exposures add up light, not sRGB values; False: the paper
    strides: tuple[int, ...] = ()  # of each stage: side of the blocks that share a kernel, px; (): 1

    def setup(self):
        self.embedding = nn.Embed(self.num_views, self.embedding_width)
        self.render_features = RenderFeatures(self.conv_width, self.feature_width) if self.use_rgbd else None
        deeper = _identity_init if self.hand_over else nn.initializers.he_normal()
        inits = [nn.initializers.he_normal()] * 2 + [deeper] * (len(self.kernel_sizes) - 1)
        inputs = self.embedding_width + 4 * POSITION_FREQUENCIES + self.use_rgbd * self.feature_width
        widths = [inputs] + [self.width] * len(inits)
        self.trunk = [Weights((widths[i], self.width), init) for i, init in enumerate(inits)]
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.kernel_heads = [Weights((self.width, k * k), small, self._centred(k)) for k in self.kernel_sizes]
        opened = nn.initializers.constant(self.mask_logit)
        self.mask_heads = [Weights((self.width, 1), small, opened) for _ in self.kernel_sizes]
        if self.use_table:
            zeros = nn.initializers.zeros
            self.table = [nn.Embed(self.num_views, k * k, embedding_init=zeros) for k in self.kernel_sizes]

    def stride(self, head: int) -> int:
        """Side of the blocks that share a kernel at one stage, px."""
        return self.strides[head] if self.strides else 1

    def _centred(self, side: int):
        def init(key, shape, dtype=jnp.float32):
            del key
            return jnp.full(shape, -0.5 * self.centre_logit, dtype).at[side * side // 2].add(self.centre_logit)

        return init

    def __call__(self, view: Int[Array, ""], rgbd: Float[Array, "H W 4"], *, head: int) -> BlurField:
        """Predicts the blur of one training view.

        Args:
          view: index of the training view.
          rgbd: sharp render in [0, 1] and its depth normalised to [0, 1]; no gradient flows into it.
          head: which stage's heads.
        """
        rgbd = mean_blocks(jax.lax.stop_gradient(rgbd), self.stride(head))
        features, mask = self._trunk_rows(view, rgbd, head)
        weight, bias = self.kernel_heads[head]()
        if self.use_table:
            bias = bias + _row(self.table[head], view)
        return BlurField(features=features, weight=weight, bias=bias, mask=mask, bound=self.logit_bound)

    def _trunk_rows(self, view, rgbd, head: int) -> tuple[Float[Array, "h w F"], Float[Array, "h w"]]:
        """Features and mask. What the first layer makes of view, row and column is added up, not laid out for every pixel."""
        height, width, _ = rgbd.shape
        first, *deeper = [layer()[0] for layer in self.trunk[: 2 + head]]
        mask_head = self.mask_heads[head]()
        ends = [self.embedding_width, self.embedding_width + 2 * POSITION_FREQUENCIES]
        ends.append(ends[-1] + 2 * POSITION_FREQUENCIES)
        of_view, of_row, of_column, of_render = jnp.split(first, ends)
        rows = position_waves(height) @ of_row + (_row(self.embedding, view) @ of_view)[None]
        columns = position_waves(width) @ of_column

        @jax.checkpoint
        def row_features(row):
            x = row[0][None] + columns
            if self.render_features is not None:
                x = x + row[1] @ of_render
            x = nn.relu(x)
            for layer in deeper:
                x = nn.relu(x @ layer)
            return x, self._mask(x, *mask_head)

        inputs = (rows,) if self.render_features is None else (rows, self.render_features(rgbd))
        pixels = CPU_TRUNK_PIXELS if current_platform() == "cpu" else DEVICE_TRUNK_PIXELS
        return jax.lax.map(row_features, inputs, batch_size=min(height, -(-pixels // width)))

    def _mask(self, features: Float[Array, "w F"], weight, bias) -> Float[Array, "w"]:
        """The mask; with a bound one that its own cost cannot close for good where there is little blur to explain.

        It then reads the trunk without teaching it, by features of unit length, so that a step of Adam moves the logit by little
        more than the rate however large the features are.
        """
        if not self.logit_bound:
            return jax.nn.sigmoid((features @ weight)[:, 0] + bias)
        logits = (safe_normalize(jax.lax.stop_gradient(features)) @ weight)[:, 0] + bias
        return jax.nn.sigmoid(clip_with_return(logits, self.logit_bound))

    def every_head(self, view: Int[Array, ""], rgbd: Float[Array, "H W 4"]) -> list[BlurField]:
        """All stages at once: what `init` calls, so that every parameter exists from the start."""
        return [self(view, rgbd, head=head) for head in range(len(self.kernel_sizes))]


def init_network(network: BlurProposalNetwork, key: Array) -> dict:
    """Parameters of all stages."""
    variables = network.init(key, jnp.int32(0), jnp.zeros((16, 16, 4)), method=network.every_head)
    return dict(variables["params"])


def hand_over(params: dict, *, source: int, target: int, kernel_sizes: tuple[int, ...], zoom: float) -> dict:
    """Starts the heads of one stage with the kernels of an earlier one, enlarged by the ratio of the image scales."""
    resize = jnp.asarray(resize_taps(kernel_sizes[source], kernel_sizes[target], zoom))
    head = params[f"kernel_heads_{source}"]
    update = {
        f"kernel_heads_{target}": {"kernel": head["kernel"] @ resize.T, "bias": resize @ head["bias"]},
        # Copied: a buffer that stands twice in the state cannot be donated.
        f"mask_heads_{target}": jax.tree.map(jnp.copy, params[f"mask_heads_{source}"]),
    }
    if f"table_{source}" in params:
        update[f"table_{target}"] = {"embedding": params[f"table_{source}"]["embedding"] @ resize.T}
    return {**params, **update}


def normalize_depth(depth: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """Depth mapped to [0, 1] over the image."""
    low, high = jnp.min(depth), jnp.max(depth)
    return (depth - low) / jnp.maximum(high - low, 1e-6)
