"""The Blur Proposal Network: a blur kernel and a mask for every pixel of a training view (Peng et al. 2024, section 3.2).

Each training stage has its own heads on a shared trunk, which is one layer deeper with every stage. Differs from the paper
where the fields of the module say so: a table of kernel logits per view, kernels that start as a delta, a mask that starts
open, kernels handed over from stage to stage, and a field that may be coarser than the image.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.blur import mean_blocks, resize_taps
from bags_jax.numerics import clip_with_return, safe_normalize
from bags_jax.structs import BlurField

POSITION_FREQUENCIES = 4


def position_code(height: int, width: int) -> Float[Array, "h w 16"]:
    """Sines and cosines of the pixel position in [-1, 1], 4 octaves."""
    y = (jnp.arange(height) + 0.5) / height * 2.0 - 1.0
    x = (jnp.arange(width) + 0.5) / width * 2.0 - 1.0
    octaves = jnp.pi * 2.0 ** jnp.arange(POSITION_FREQUENCIES)

    def waves(position):
        angles = position[:, None] * octaves[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    rows = jnp.broadcast_to(waves(y)[:, None], (height, width, 2 * POSITION_FREQUENCIES))
    columns = jnp.broadcast_to(waves(x)[None], (height, width, 2 * POSITION_FREQUENCIES))
    return jnp.concatenate([rows, columns], axis=-1)


def _corners(height, width):
    y = (jnp.arange(height) + 0.5) / height * 2.0 - 1.0
    x = (jnp.arange(width) + 0.5) / width * 2.0 - 1.0
    return x[None, :], y[:, None]


def _identity_init(key, shape, dtype=jnp.float32):
    """A layer that does nothing: its inputs are outputs of a ReLU, and so another ReLU keeps them."""
    del key
    return jnp.eye(*shape, dtype=dtype)


class RenderFeatures(nn.Module):
    """Convolutions on the render and its depth: what there is to be blurred."""

    conv_width: int
    feature_width: int

    @nn.compact
    def __call__(self, rgbd: Float[Array, "h w 4"]) -> Float[Array, "h w F"]:
        x = rgbd
        for _ in range(2):
            x = nn.relu(nn.Conv(self.conv_width, (5, 5))(x[None])[0])
            mean, variance = jnp.mean(x, axis=(0, 1), keepdims=True), jnp.var(x, axis=(0, 1), keepdims=True)
            x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        return nn.Conv(self.feature_width, (3, 3))(x[None])[0]


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
    table_terms: int = 1  # 3: the table's logits vary linearly over the image; 4: and with depth
    linear_light: bool = False
    strides: tuple[int, ...] = ()  # of each stage: side of the blocks that share a kernel, px; (): 1

    def setup(self):
        self.embedding = nn.Embed(self.num_views, self.embedding_width)
        self.render_features = RenderFeatures(self.conv_width, self.feature_width) if self.use_rgbd else None
        deeper = _identity_init if self.hand_over else nn.initializers.he_normal()
        inits = [nn.initializers.he_normal()] * 2 + [deeper] * (len(self.kernel_sizes) - 1)
        self.trunk = [nn.Dense(self.width, use_bias=False, kernel_init=init) for init in inits]
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.kernel_heads = [nn.Dense(k * k, kernel_init=small, bias_init=self._centred(k)) for k in self.kernel_sizes]
        self.mask_heads = [
            nn.Dense(1, kernel_init=small, bias_init=nn.initializers.constant(self.mask_logit))
            for _ in self.kernel_sizes
        ]
        if self.use_table:
            zeros = nn.initializers.zeros
            self.table = [
                nn.Embed(self.num_views, self.table_terms * k * k, embedding_init=zeros) for k in self.kernel_sizes
            ]

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
        height, width, _ = rgbd.shape
        embedding = jnp.broadcast_to(self.embedding(view), (height, width, self.embedding_width))
        inputs = [embedding, position_code(height, width)]
        if self.render_features is not None:
            inputs.append(self.render_features(rgbd))
        x = jnp.concatenate(inputs, axis=-1)
        for layer in self.trunk[: 2 + head]:
            x = nn.relu(layer(x))
        logits = self.kernel_heads[head](x)
        if self.use_table:
            basis = jnp.stack(
                [jnp.ones((height, width)), *jnp.broadcast_arrays(*_corners(height, width)), rgbd[..., 3] - 0.5], axis=-1
            )[..., : self.table_terms]
            logits = logits + basis @ self.table[head](view).reshape(self.table_terms, -1)
        if self.logit_bound:
            logits = jnp.asarray(clip_with_return(logits, self.logit_bound))
        kernels = jnp.moveaxis(jax.nn.softmax(logits, axis=-1), -1, 0)
        return BlurField(kernels=kernels, mask=self._mask(x, head))

    def _mask(self, features: Float[Array, "h w F"], head: int) -> Float[Array, "h w"]:
        """The mask; with bounded logits one that its own cost cannot close for good where there is little blur to explain.

        It then reads the trunk without teaching it, by features of unit length, so that a step of Adam moves the logit by little
        more than the rate however large the features are.
        """
        if not self.logit_bound:
            return jax.nn.sigmoid(self.mask_heads[head](features)[..., 0])
        logits = self.mask_heads[head](safe_normalize(jax.lax.stop_gradient(features)))[..., 0]
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
        table = params[f"table_{source}"]["embedding"]
        num_views = table.shape[0]
        resized = table.reshape(num_views, -1, kernel_sizes[source] ** 2) @ resize.T
        update[f"table_{target}"] = {"embedding": resized.reshape(num_views, -1)}
    return {**params, **update}


def normalize_depth(depth: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """Depth mapped to [0, 1] over the image."""
    low, high = jnp.min(depth), jnp.max(depth)
    return (depth - low) / jnp.maximum(high - low, 1e-6)
