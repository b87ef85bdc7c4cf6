"""The blur of a block of rows by blur.cu: the functions of ../xla.py, in three launches instead of hundreds."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bags_jax.ops.blur.kernels import Filtered, KernelBlock
from bags_jax.ops.limits import COLORS
from bags_jax.ops.toolchain.cuda_launch import Kernel, launch

THREADS = 128  # of a block; blur.cu has the same number


def split(bordered: Float[Array, "D H W"], h: int, w: int, block: KernelBlock) -> Float[Array, "1 D y x"]:
    """Pads an image that has half a kernel around it to whole blocks; repeats the last pixel."""
    _, height, width = bordered.shape
    below, right = (n * block.stride + 2 * (block.side // 2) - size for n, size in ((h, height), (w, width)))
    return jnp.pad(bordered, ((0, 0), (0, below), (0, right)), mode="edge")[None]


def join(image: Float[Array, "1 D y x"]) -> Float[Array, "D y x"]:
    """Returns a filtered image."""
    return image[0]


def _launch(
    name: str, shapes, block: KernelBlock, w: int, *operands, threads: int, aliases: dict[int, int] | None = None
):
    sizes = jnp.array([block.rows, w, block.side], jnp.int32)
    kernel = Kernel(f"blur_{block.stride}", name, THREADS)
    outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return launch(kernel, outputs, sizes, *operands, grid=(-(-threads // THREADS), 1), aliases=aliases)


def _limits(block: KernelBlock) -> Float[Array, "2"]:
    return jnp.array([block.bound or math.inf, block.floor], jnp.float32)


def filter_rows(slab: Float[Array, "1 D y x"], logits: Float[Array, "KK n"], block: KernelBlock) -> Filtered:
    """Does what xla.filter_rows does."""
    num = logits.shape[1]
    w = num // block.rows
    image = (1, COLORS, block.rows * block.stride, w * block.stride)
    shapes = [image, (5, block.rows, w), (block.rows, w)]
    return Filtered(*_launch("filter_rows", shapes, block, w, _limits(block), slab, logits, threads=num))


def filter_rows_gradient(
    slab: Float[Array, "1 D y x"],
    logits: Float[Array, "KK n"],
    filtered: Filtered,
    d_image: Float[Array, "1 D y2 x2"],
    d_moments: Float[Array, "5 r w"],
    block: KernelBlock,
) -> tuple[Float[Array, "1 D y x"], Float[Array, "KK n"]]:
    """Does what xla.filter_rows_gradient does. The kernels are written over their logits."""
    w, num = d_moments.shape[2], logits.shape[1]
    operands = (_limits(block), slab, logits, *filtered, d_image, d_moments)
    both = [logits.shape, logits.shape]
    kernels, d_logits = _launch("logit_gradients", both, block, w, *operands, threads=num, aliases={3: 0})
    (d_slab,) = _launch("slab_gradients", [slab.shape], block, w, kernels, d_image, threads=slab[0, 0].size)
    return d_slab, d_logits
