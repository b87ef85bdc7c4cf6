"""`convolve`: the convolution of the blur network."""

from jaxtyping import Array, Float

from bags_jax.ops.backends import choose
from bags_jax.ops.convolution import cpu, xla


def convolve(
    image: Float[Array, "h w Ci"], kernel: Float[Array, "K K Ci Co"], *, backend: str = "auto"
) -> Float[Array, "h w Co"]:
    """Correlates an image with a kernel of odd size, zeros beyond the border (flax's nn.Conv with padding SAME).

    Args:
      image: any number of channels.
      kernel: rows, columns, channels of the image, channels of the result.
      backend: "cpu" has a gradient of the kernel of its own, because XLA's is slow on a CPU; "xla" runs everywhere;
        "auto" takes the best of this machine. "cuda" and "tpu" run on "xla" there.
    Raises:
      ValueError: a backend that is unknown or that this machine cannot run.
    Differentiable in both; on "cpu" once, in reverse mode.
    """
    implementation = cpu if choose("convolution", backend) == "cpu" else xla
    return implementation.convolve(image, kernel)
