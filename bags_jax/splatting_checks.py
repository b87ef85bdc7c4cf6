"""Checks of the arguments of `rasterization`: each failure is one line that says what came, what was expected and the fix."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from bags_jax.geometry import CAMERA_MODELS
from bags_jax.spherical_harmonics import MAX_DEGREE, num_coefficients

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")

_DISTORTION = "cameras have no lens distortion: undistort the images first and leave it out"
_SHUTTER = "all rows of an image share one pose: leave it out"
_PROJECTION = "Gaussians are projected by EWA splatting only: leave it out"
# Arguments of gsplat 1.5.3 without an equivalent here: the one value that is accepted, and the message for all others.
_NOT_HERE: dict[str, tuple[Any, str]] = {
    "packed": (False, "XLA needs static shapes, so all C x N projections are stored: pass packed=False"),
    "sparse_grad": (False, "JAX returns dense gradients: pass sparse_grad=False"),
    "absgrad": (
        False,
        "the kernels sum signed gradients over pixels, not absolute ones: the gradient of probe_px=zeros is that sum",
    ),
    "distributed": (False, "call rasterization within jax.pmap or jax.shard_map: pass distributed=False"),
    "segmented": (False, "each backend has one sort: pass segmented=False"),
    "channel_chunk": ("no value", "each backend splits channels itself: leave it out"),
    "with_ut": (False, _PROJECTION),
    "with_eval3d": (False, _PROJECTION),
    "radial_coeffs": (None, _DISTORTION),
    "tangential_coeffs": (None, _DISTORTION),
    "thin_prism_coeffs": (None, _DISTORTION),
    "ftheta_coeffs": (None, _DISTORTION),
    "rolling_shutter": (None, _SHUTTER),
    "viewmats_rs": (None, _SHUTTER),
}


def check_unsupported(options: dict[str, Any]) -> None:
    """Raises for keyword arguments that `rasterization` does not have.

    Raises:
      TypeError: gsplat has no such argument either.
      ValueError: an argument of gsplat, with a value that has no equivalent here.
    """
    for name, value in options.items():
        if name not in _NOT_HERE:
            raise TypeError(f"rasterization() got an unexpected keyword argument {name!r}: see docs/splatting_api.md")
        accepted, advice = _NOT_HERE[name]
        if value is not accepted:
            raise ValueError(f"{name} is an argument of gsplat that is not supported here: {advice}")


def check_static(options: dict[str, Any]) -> None:
    """Raises ValueError if sizes or other static options are JAX arrays; jit makes arrays of all its arguments."""
    arrays = [name for name, value in options.items() if isinstance(value, jax.Array)]
    if arrays:
        names = tuple(dict.fromkeys(("width", "height", *arrays, "max_intersections")))
        raise ValueError(
            f"{', '.join(arrays)} came as JAX arrays, expected Python numbers:"
            f" jax.jit(rasterization, static_argnames={names}), and pass max_intersections"
        )


def check_modes(render_mode: str, rasterize_mode: str, camera_model: str) -> None:
    """Raises ValueError for an unknown mode."""
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode={render_mode!r} came, expected one of {', '.join(RENDER_MODES)}")
    if rasterize_mode not in RASTERIZE_MODES:
        raise ValueError(f"rasterize_mode={rasterize_mode!r} came, expected one of {', '.join(RASTERIZE_MODES)}")
    if camera_model not in CAMERA_MODELS:
        raise ValueError(
            f"camera_model={camera_model!r} came, expected one of {', '.join(CAMERA_MODELS)}: undistort images of other"
            " cameras first"
        )


def check_arrays(arrays: dict[str, Any], sh_degree: int | None) -> None:
    """Raises ValueError for shapes that do not fit each other.

    Args:
      arrays: by argument of `rasterization`; None where an optional one is missing.
      sh_degree: None if colors are colours.
    """
    means, viewmats, colors = arrays["means"], arrays["viewmats"], arrays["colors"]
    batch, num = means.shape[:-2], means.shape[-2] if means.ndim > 1 else 0
    cameras = viewmats.shape[-3] if viewmats.ndim > 2 else 0
    expected = {
        "means": (*batch, num, 3),
        "quats": (*batch, num, 4),
        "scales": (*batch, num, 3),
        "covars": (*batch, num, 3, 3),
        "opacities": (*batch, num),
        "viewmats": (*batch, cameras, 4, 4),
        "Ks": (*batch, cameras, 3, 3),
        "backgrounds": (*batch, cameras, *colors.shape[-1:]),
        "probe_px": (*batch, cameras, num, 2),
    }
    if arrays["covars"] is None and (arrays["quats"] is None or arrays["scales"] is None):
        raise ValueError("quats or scales is None, expected both: pass quats and scales, or covars")
    for name, shape in expected.items():
        array = arrays[name]
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {shape}: batch axes and N are taken from means, C from viewmats"
            )
    _check_colors(colors.shape, sh_degree, (*batch, num), (*batch, cameras, num))


def _check_colors(shape: tuple[int, ...], sh_degree: int | None, shared: tuple, per_camera: tuple) -> None:
    """Checks colours [..., N, D] or [..., C, N, D], or coefficients with one more axis."""
    if sh_degree is None:
        if shape[:-1] not in (shared, per_camera):
            raise ValueError(
                f"colors of shape {shape} came without sh_degree, expected {(*shared, 'D')} or {(*per_camera, 'D')}:"
                " pass sh_degree for spherical harmonics"
            )
        return
    if not 0 <= sh_degree <= MAX_DEGREE:
        raise ValueError(f"sh_degree={sh_degree} came, expected 0 to {MAX_DEGREE}, or None if colors are colours")
    need = num_coefficients(sh_degree)
    if shape[:-2] not in (shared, per_camera) or shape[-2] < need or shape[-1] != 3:
        raise ValueError(
            f"sh_degree={sh_degree} needs colors {(*shared, f'>= {need}', 3)} or {(*per_camera, f'>= {need}', 3)}, got"
            f" {shape}"
        )


@contextlib.contextmanager
def explain_derivatives() -> Iterator[None]:
    """Replaces JAX's errors about derivatives that do not exist by one line that says what to do."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if "forward-mode" in str(error):
            raise TypeError(
                "rasterization has no forward-mode derivative: take jax.grad, jax.vjp or jax.jacrev instead of jax.jvp or"
                " jax.jacfwd"
            ) from error
        if "cannot be differentiated" in str(error):
            raise TypeError(
                "rasterization is differentiable once: compute second derivatives by finite differences of its gradient"
            ) from error
        raise
