"""Two blur models of earlier work, through the interface of a blur model: one kernel a view, and sparse deformable kernels.

They are ablations of the benchmark, not part of the package: `train`, `evaluate` and `open_run` take the functions
`make_global_kernels` and `make_deformable_kernels` as make_model.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bags_jax.blur_model.proposal_network import POSITION_FREQUENCIES, position_waves
from bags_jax.numerics import clip_with_return
from bags_jax.ops.blur.kernels import resize_taps
from bags_jax.settings import Settings
from bags_jax.structs import BlurField

NUM_POINTS = 5  # of a deformable kernel (Ma et al. 2022, Deblur-NeRF)
FIRST_SPREAD_PX = 0.3  # of the points of a deformable kernel at step 0, px at full image scale
LEAST_WEIGHT = 1e-6  # of a tap that no point reaches: its logarithm must be finite


@dataclasses.dataclass(frozen=True)
class GlobalKernels:
    """One kernel and one mask value for each view, the same at every pixel. A BlurModel.

    Bounds and first values are those of the Blur Proposal Network.
    """

    num_views: int
    kernel_sizes: tuple[int, ...]  # of the stages, px
    centre_logit: float = 6.0
    mask_logit: float = 3.0
    logit_bound: float = 5.0

    def init_params(self, key: Array) -> dict:
        """Returns kernels that are nearly a delta, and masks that are nearly open."""
        del key  # nothing is random
        params: dict[str, Array] = {}
        for head, side in enumerate(self.kernel_sizes):
            logits = jnp.full((self.num_views, side * side), -0.5 * self.centre_logit)
            params[f"kernels_{head}"] = logits.at[:, side * side // 2].add(self.centre_logit)
            params[f"masks_{head}"] = jnp.full(self.num_views, self.mask_logit)
        return params

    def field(self, params: Any, view: Int[Array, ""], rgbd: Float[Array, "h w 4"], *, head: int) -> BlurField:
        """Returns the kernel of the view as the bias of the last layer, whose features are 0."""
        height, width, _ = rgbd.shape
        mask = params[f"masks_{head}"][view]
        mask = jax.nn.sigmoid(clip_with_return(mask, self.logit_bound) if self.logit_bound else mask)
        return BlurField(
            features=jnp.zeros((height, width, 1)),
            weight=jnp.zeros((1, self.kernel_sizes[head] ** 2)),
            bias=params[f"kernels_{head}"][view],
            mask=jnp.broadcast_to(mask, (height, width)),
            bound=self.logit_bound,
        )

    def hand_over(self, params: Any, *, source: int, target: int, zoom: float) -> dict:
        """Enlarges the kernels by `zoom`, and copies the masks."""
        resize = jnp.asarray(resize_taps(self.kernel_sizes[source], self.kernel_sizes[target], zoom))
        kernels, masks = params[f"kernels_{source}"] @ resize.T, jnp.copy(params[f"masks_{source}"])
        return {**params, f"kernels_{target}": kernels, f"masks_{target}": masks}

    def rate_groups(self, params: Any) -> dict:
        """Kernels have the rate of a table."""
        return {name: "mask" if name.startswith("masks") else "table" for name in params}


@dataclasses.dataclass(frozen=True)
class DeformableKernels:
    """A few weighted points for each pixel, as radiance fields had them before BAGS (Ma et al. 2022). A BlurModel.

    Each view has points of its own; a network that sees view and position moves them and changes their weights at every pixel.
    A point reads the render between its pixels (bilinear). There is no mask.

    The points are spread over the taps of a kernel of the stage, so that the blur applies them: the features are the logarithms
    of the taps, the last layer is the identity, and their softmax is the taps again.
    """

    num_views: int
    kernel_sizes: tuple[int, ...]  # of the stages, px: points stay inside
    scales: tuple[float, ...]  # image scales of the stages
    num_points: int = NUM_POINTS
    width: int = 64
    num_layers: int = 3
    embedding_width: int = 32

    def init_params(self, key: Array) -> dict:
        """Returns points close to the pixel, with equal weights, and a network that hardly moves them."""
        of_points, of_views, *of_layers = jax.random.split(key, 3 + self.num_layers)
        widths = [self.embedding_width + 4 * POSITION_FREQUENCIES, *[self.width] * self.num_layers, 3 * self.num_points]
        points = FIRST_SPREAD_PX * jax.random.normal(of_points, (self.num_views, self.num_points, 2))
        params: dict[str, Any] = {
            "points": points - jnp.mean(points, axis=1, keepdims=True),
            "weights": jnp.zeros((self.num_views, self.num_points)),
            "embedding": jax.random.normal(of_views, (self.num_views, self.embedding_width)),
        }
        for i, layer_key in enumerate(of_layers):
            gain = 2.0 if i < self.num_layers else 1e-4
            init = jax.nn.initializers.variance_scaling(gain, "fan_in", "normal")
            params[f"layer_{i}"] = {
                "kernel": init(layer_key, (widths[i], widths[i + 1])),
                "bias": jnp.zeros(widths[i + 1]),
            }
        return params

    def points_of(
        self, params: Any, view: Int[Array, ""], height: int, width: int
    ) -> tuple[Float[Array, "h w N 2"], Float[Array, "h w N"]]:
        """Offsets (dx, dy) of the points of every pixel, px at full image scale, and their weights, which sum to 1."""
        rows, columns = position_waves(height), position_waves(width)
        inputs = [
            jnp.broadcast_to(params["embedding"][view], (height, width, self.embedding_width)),
            jnp.broadcast_to(rows[:, None], (height, width, rows.shape[1])),
            jnp.broadcast_to(columns[None], (height, width, columns.shape[1])),
        ]
        x = jnp.concatenate(inputs, axis=-1)
        for i in range(self.num_layers + 1):
            layer = params[f"layer_{i}"]
            x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"][None, None]
        x = x.reshape(height, width, self.num_points, 3)
        points, logits = params["points"][view][None, None], params["weights"][view][None, None]
        return points + x[..., :2], jax.nn.softmax(logits + x[..., 2])

    def field(self, params: Any, view: Int[Array, ""], rgbd: Float[Array, "h w 4"], *, head: int) -> BlurField:
        """Spreads the points of each pixel over the taps of its kernel."""
        height, width, _ = rgbd.shape
        side = self.kernel_sizes[head]
        offsets, weights = self.points_of(params, view, height, width)
        reach = max(side // 2, 1)
        offsets = (side // 2) * jnp.tanh(self.scales[head] * offsets / reach)
        line = jnp.arange(side).reshape(1, 1, 1, 1, side) - side // 2
        hats = jnp.maximum(1.0 - jnp.abs(offsets[..., None] - line), 0.0)  # [h w N 2 K]
        taps = jnp.einsum("hwn,hwny,hwnx->hwyx", weights, hats[..., 1, :], hats[..., 0, :])
        return BlurField(
            features=jnp.log(taps.reshape(height, width, side * side) + LEAST_WEIGHT),
            weight=jnp.eye(side * side),
            bias=jnp.zeros(side * side),
            mask=jnp.ones((height, width)),
        )

    def hand_over(self, params: Any, *, source: int, target: int, zoom: float) -> dict:
        """Returns the parameters unchanged: all stages share them, because offsets are in px at full image scale."""
        del source, target, zoom
        return params

    def rate_groups(self, params: Any) -> dict:
        """Points and weights of a view have the rate of a table."""
        tables = ("points", "weights")
        return {
            name: jax.tree.map(lambda _, n=name: "table" if n in tables else "network", x) for name, x in params.items()
        }


def make_global_kernels(settings: Settings, num_views: int) -> GlobalKernels:
    """One kernel a view, for the settings of a run."""
    blur = settings.blur
    return GlobalKernels(num_views, blur.kernel_sizes, blur.centre_logit, blur.mask_logit, blur.logit_bound)


def make_deformable_kernels(settings: Settings, num_views: int) -> DeformableKernels:
    """Sparse deformable kernels, for the settings of a run."""
    return DeformableKernels(num_views, settings.blur.kernel_sizes, settings.stages.scales)
