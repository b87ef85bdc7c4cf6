"""What a blur model is: parameters, a blur field for each training view, and how both go on from stage to stage.

Training knows nothing else of a blur model. `proposal_network.py` is the model of the paper, docs/extending_blur_model.md
builds another one.
"""

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int

from bags_jax.errors import UserError
from bags_jax.structs import BlurField

RATE_GROUPS = ("network", "table", "mask")  # optim.network times 1, optim.table_gain, optim.mask_gain


@runtime_checkable
class BlurModel(Protocol):
    """The static part of a blur model; its parameters are a pytree of arrays that travels apart from it.

    A model is hashable, because the training step is compiled for it. Kernel sizes and strides of a head are those of its stage
    (schedule.Stage); K is the kernel size, h x w the image in blocks of stride x stride px.
    """

    def init_params(self, key: Array) -> Any:
        """Returns the parameters of all heads at step 0, a dict."""
        ...

    def field(self, params: Any, view: Int[Array, ""], rgbd: Float[Array, "h w 4"], *, head: int) -> BlurField:
        """Proposes the blur of one training view.

        Args:
          params: as `init_params` returns them.
          view: index of the training view.
          rgbd: sharp render in [0, 1] and normalised depth, averaged over the blocks of the stage. No gradient flows into it.
          head: index of the stage in the resolution schedule.
        Returns:
          features [h w F], weight [F K*K], bias [K*K] and mask [h w]: see BlurField.
        """
        ...

    def hand_over(self, params: Any, *, source: int, target: int, zoom: float) -> Any:
        """Returns the parameters with head `target` starting from the kernels of head `source`, enlarged by `zoom`."""
        ...

    def rate_groups(self, params: Any) -> Any:
        """Returns the learning-rate group of each array, one of RATE_GROUPS, as a pytree like `params`."""
        ...


def check_blur_model(model: Any) -> None:
    """Raises UserError if a blur model lacks a method, cannot be hashed, or has parameters that are not a dict of arrays."""
    if model is None:
        raise UserError("make_model returned None, expected a blur model; config.blur.enabled=False trains without one")
    name = type(model).__name__
    methods = [method for method in vars(BlurModel) if not method.startswith("_")]
    missing = [method for method in methods if not callable(getattr(model, method, None))]
    if missing:
        raise UserError(f"the blur model {name} has no {', '.join(missing)}: expected the methods {', '.join(methods)}")
    try:
        hash(model)
    except TypeError as error:
        raise UserError(
            f"the blur model {name} cannot be hashed ({error}): expected a frozen dataclass of numbers and tuples; "
            "arrays belong to its parameters"
        ) from error
    params = jax.eval_shape(model.init_params, jax.random.key(0))
    if not isinstance(params, dict):
        raise UserError(f"init_params of the blur model {name} returned a {type(params).__name__}, expected a dict")
