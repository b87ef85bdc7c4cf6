"""The Gaussians themselves, drawn by the browser of one window."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from bags_jax.geometry import rotation_from_quat
from bags_jax.ops.see.xla import activate
from bags_jax.run import Run
from bags_jax.spherical_harmonics import SH_C0


def make_splats(run: Run) -> dict[str, Float[np.ndarray, "N ..."]]:
    """Centres, covariances, colours (without view dependence) and opacities of the living Gaussians, 3D filter included."""
    state = run.state
    alive = np.asarray(state.alive)
    scales, opacities = activate(state.gaussians, state.alive, state.filter_3d)
    axes = jax.device_get(rotation_from_quat(state.gaussians.quats))[alive] * np.asarray(scales)[alive][:, None, :]
    return {
        "centers": np.asarray(state.gaussians.means)[alive],
        "covariances": axes @ axes.transpose(0, 2, 1),
        "rgbs": np.clip(0.5 + SH_C0 * np.asarray(state.gaussians.sh_dc)[alive, 0], 0.0, 1.0),
        "opacities": np.asarray(opacities)[alive][:, None],
    }


class Splats:
    """The splats of one window. client: viser's ClientHandle. They are sent when they are first shown."""

    def __init__(self, client: Any):
        self._client = client
        self._handle: Any = None
        self._step = -1

    def show(self, run: Run) -> None:
        """Shows the splats of a run, and sends them if the window has those of another step."""
        step = int(run.state.step)
        if step != self._step:
            self._handle, self._step = self._client.scene.add_gaussian_splats("/splats", **make_splats(run)), step
        self._handle.visible = True

    def hide(self) -> None:
        """Hides them; the browser keeps them."""
        if self._handle is not None:
            self._handle.visible = False
