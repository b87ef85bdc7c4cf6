"""A block of rows by the kernels of bags_jax/cuda/blur.cu: what rows_xla.py does, in three launches instead of hundreds."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.blur.kernels import Filtered, Plan
from bags_jax.ops.limits import STRIDES
from bags_jax.ops.toolchain.cuda_launch import Kernel, is_available, launch

THREADS, COLORS = 128, 3  # of a block, and of an image, as in blur.cu


def can_run(plan: Plan, channels: int) -> bool:
    """Whether there are kernels for this, and a GPU that they run on."""
    return plan.stride in STRIDES and channels == COLORS and is_available()


def split(bordered: Float[Array, "D H W"], h: int, w: int, plan: Plan) -> Float[Array, "1 D y x"]:
    """An image with half a kernel around it, continued to whole blocks of pixels by its last one."""
    _, height, width = bordered.shape
    below, right = (n * plan.stride + 2 * (plan.side // 2) - size for n, size in ((h, height), (w, width)))
    return jnp.pad(bordered, ((0, 0), (0, below), (0, right)), mode="edge")[None]


def join(image: Float[Array, "1 D y x"]) -> Float[Array, "D y x"]:
    """A filtered image."""
    return image[0]


def _launch(name: str, shapes, plan: Plan, w: int, *operands, threads: int, aliases: dict[int, int] | None = None):
    sizes = jnp.array([plan.rows, w, plan.side], jnp.int32)
    kernel = Kernel(f"blur_{plan.stride}", name, THREADS)
    outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return launch(kernel, outputs, sizes, *operands, grid=(-(-threads // THREADS), 1), aliases=aliases)


def _limits(plan: Plan) -> Float[Array, "2"]:
    return jnp.array([plan.bound or math.inf, plan.floor], jnp.float32)


def filter_rows(slab: Float[Array, "1 D y x"], logits: Float[Array, "KK n"], plan: Plan) -> Filtered:
    """rows_xla.filter_rows."""
    num = logits.shape[1]
    w = num // plan.rows
    image = (1, COLORS, plan.rows * plan.stride, w * plan.stride)
    shapes = [image, (5, plan.rows, w), (plan.rows, w)]
    return Filtered(*_launch("filter_rows", shapes, plan, w, _limits(plan), slab, logits, threads=num))


def filter_rows_gradient(
    slab: Float[Array, "1 D y x"],
    logits: Float[Array, "KK n"],
    filtered: Filtered,
    d_image: Float[Array, "1 D y2 x2"],
    d_moments: Float[Array, "5 r w"],
    plan: Plan,
) -> tuple[Float[Array, "1 D y x"], Float[Array, "KK n"]]:
    """rows_xla.filter_rows_gradient. The kernels themselves are written over their logits."""
    w, num = d_moments.shape[2], logits.shape[1]
    operands = (_limits(plan), slab, logits, *filtered, d_image, d_moments)
    both = [logits.shape, logits.shape]
    kernels, d_logits = _launch("logit_gradients", both, plan, w, *operands, threads=num, aliases={3: 0})
    (d_slab,) = _launch("slab_gradients", [slab.shape], plan, w, kernels, d_image, threads=slab[0, 0].size)
    return d_slab, d_logits
