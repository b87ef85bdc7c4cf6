"""A training step of plain splatting by gsplat and torch, on the same scene as ours. Used by training_step.py.

A step is antialiased rendering of SH, L1 and SSIM, gradients, and fused Adam on every group. SSIM uses fused_ssim if
installed, as gsplat's own trainer does, else separable convolutions. torch, gsplat and fused_ssim are optional.
"""

import importlib
import importlib.util
from collections.abc import Callable

import numpy as np

from bags_jax.errors import UserError
from bags_jax.ops.ssim.window import C1, C2
from bags_jax.step import Recipe
from bags_jax.structs import Dataset, TrainState


def check_gsplat() -> None:
    """Raises UserError if torch or gsplat is missing."""
    if missing := [name for name in ("torch", "gsplat") if not importlib.util.find_spec(name)]:
        raise UserError(f"--beside=gsplat needs {' and '.join(missing)}: install them, or leave the flag out")


def make_step(
    state: TrainState, dataset: Dataset, recipe: Recipe, *, rate: float, device: str = "cuda"
) -> Callable[[], None]:
    """Returns a function that starts one training step and does not wait for the device. rate: of all parameters."""
    torch, gsplat = importlib.import_module("torch"), importlib.import_module("gsplat")

    def tensor(x, *, trained=False):
        return torch.tensor(np.array(x), device=device, requires_grad=trained)

    of = state.gaussians
    leaves = (of.means, of.quats, of.log_scales, of.logit_opacities, of.sh_dc, of.sh_rest)
    trained = [tensor(x, trained=True) for x in leaves]
    viewmats, Ks = tensor(dataset.cameras.viewmat), tensor(dataset.cameras.K)
    photo = tensor(dataset.images)[0].float() / 255.0
    optimizer = torch.optim.Adam([{"params": [x], "lr": rate} for x in trained], eps=1e-15, fused=True)
    taps = torch.exp(-((torch.arange(11, device=device) - 5.0) ** 2) / (2.0 * 1.5**2))
    window = (taps / taps.sum()).expand(15, 1, 11).contiguous()
    view = recipe.view
    options = {"sh_degree": 3, "packed": False, "eps2d": view.eps_2d, "near_plane": view.near_plane}

    def separable_ssim(x, y):
        moments = torch.cat([x, y, x * x, y * y, x * y], 1)
        for taps, padding in ((window[:, :, :, None], (5, 0)), (window[:, :, None], (0, 5))):
            moments = torch.nn.functional.conv2d(moments, taps, padding=padding, groups=15)
        mean_x, mean_y, xx, yy, xy = moments[0].split(3)
        luminance = (2.0 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
        structure = 2.0 * (xy - mean_x * mean_y) + C2
        return (luminance * structure / (xx - mean_x**2 + yy - mean_y**2 + C2)).mean()

    fused = importlib.util.find_spec("fused_ssim")
    ssim = importlib.import_module("fused_ssim").fused_ssim if fused else separable_ssim

    def step():
        means, quats, log_scales, logits, sh_dc, sh_rest = trained
        inputs = means, quats, log_scales.exp(), logits.sigmoid(), torch.cat([sh_dc, sh_rest], 1), viewmats, Ks
        image = gsplat.rasterization(*inputs, view.width, view.height, rasterize_mode="antialiased", **options)[0][0]
        weight = recipe.loss.ssim
        planes = (x.permute(2, 0, 1)[None] for x in (image, photo))
        loss = (1.0 - weight) * (image - photo).abs().mean() + weight * (1.0 - ssim(*planes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def synchronize() -> None:
    """Waits for the device."""
    importlib.import_module("torch").cuda.synchronize()
