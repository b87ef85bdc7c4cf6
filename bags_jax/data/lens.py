"""Lens: the intrinsics of a photograph by any of COLMAP's camera models, and the undistortion of the photograph."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8

from bags_jax.errors import UserError
from bags_jax.sfm import client

# Number of focal lengths of each camera model that is a pinhole if its distortion coefficients are 0. The order of the
# parameters is: focal lengths, principal point, distortion coefficients.
_NUM_FOCALS = {"SIMPLE_PINHOLE": 1, "SIMPLE_RADIAL": 1, "RADIAL": 1, "PINHOLE": 2, "OPENCV": 2, "FULL_OPENCV": 2}
# The same of the models that distort with any coefficients.
_NUM_FISHEYE_FOCALS = {"SIMPLE_FISHEYE": 1, "SIMPLE_RADIAL_FISHEYE": 1, "RADIAL_FISHEYE": 1, "FISHEYE": 2, "FOV": 2}
_NUM_FISHEYE_FOCALS |= {"OPENCV_FISHEYE": 2, "THIN_PRISM_FISHEYE": 2, "RAD_TAN_THIN_PRISM_FISHEYE": 2}
_MAX_ASPECT = 1e6  # largest focal length, and distance of the principal point, relative to the size of the picture
_MAX_SIDE = 1 << 20  # px
_PLANAR_ONLY = ("EQUIRECTANGULAR",)  # pycolmap returns their pictures unchanged: no image plane can hold them
_UNDISTORT_COMMAND = "colmap image_undistorter --image_path images --input_path sparse/0 --output_path undistorted"
_MAX_BLANK = 0.02  # largest share of pixels without a source; interpolation leaves some at the border


@dataclasses.dataclass(frozen=True)
class Lens:
    """One of COLMAP's camera models with its parameters."""

    model: str  # name of the model, such as "PINHOLE"
    width: int  # px, of the picture that params belong to (the photograph may be a resized copy)
    height: int  # px
    params: tuple[float, ...]  # in COLMAP's order; px, pixel centres at +0.5


def make_pinhole_K(lens: Lens, *, width: int, height: int) -> Float[np.ndarray, "3 3"] | None:
    """Returns the intrinsics of a width x height copy of the lens' picture; None if the lens distorts.

    px, pixel centres at +0.5.

    Raises:
      UserError: as check_lens.
    """
    check_lens(lens)
    num_focals = _NUM_FOCALS.get(lens.model)
    if num_focals is None or any(lens.params[num_focals + 2 :]):
        return None
    fx, fy, (cx, cy) = lens.params[0], lens.params[num_focals - 1], lens.params[num_focals : num_focals + 2]
    # With pixel centres at +0.5 a coordinate scales with the image: no half pixel to correct.
    x_scale, y_scale = width / lens.width, height / lens.height
    return np.array([[fx * x_scale, 0, cx * x_scale], [0, fy * y_scale, cy * y_scale], [0, 0, 1]])


def check_lens(lens: Lens) -> None:
    """Checks that a camera with this lens can exist, in numbers that float32 holds.

    Raises:
      UserError: the lens has parameters that are not finite, or a size or focal length that is not positive or beyond reason.
    """
    num_focals = {**_NUM_FOCALS, **_NUM_FISHEYE_FOCALS}.get(lens.model)
    if not (1 <= lens.width <= _MAX_SIDE and 1 <= lens.height <= _MAX_SIDE) or not np.isfinite(lens.params).all():
        raise _make_lens_error(lens)
    if num_focals is None:  # undistort says what is wrong with the model
        return
    side = max(lens.width, lens.height)
    focals, center = lens.params[:num_focals], lens.params[num_focals : num_focals + 2]
    is_focal = all(side / _MAX_ASPECT <= focal <= side * _MAX_ASPECT for focal in focals)
    if not is_focal or not all(abs(x) <= side * _MAX_ASPECT for x in center):
        raise _make_lens_error(lens)


def undistort(
    image: UInt8[np.ndarray, "_H _W 3"], lens: Lens
) -> tuple[UInt8[np.ndarray, "_h _w 3"], Float[np.ndarray, "3 3"]]:
    """Resamples a photograph as a pinhole camera would have taken it. Its size changes so that no pixel is blank.

    Args:
      image: a copy, at any size, of the picture that the lens' parameters belong to.
      lens: any of COLMAP's models.
    Returns:
      The image and its intrinsics (px, pixel centres at +0.5).
    Raises:
      UserError: pycolmap fails, or parts of the result stay blank because the coefficients are too large.
    """
    refusal = f"cannot undistort the lens {lens.model} {list(lens.params)} here"
    advice = f"calibrate again, or undistort with COLMAP itself ({_UNDISTORT_COMMAND}) and load the result"
    if lens.model in _PLANAR_ONLY:
        raise UserError(f"{refusal}: it sees more than an image plane can show; expected a perspective or fisheye lens")
    try:
        result, K, blank = client.call("undistort", image, dataclasses.astuple(lens))
    except RuntimeError as error:
        raise UserError(f"{refusal} ({error}): {advice}") from error
    if blank > _MAX_BLANK:
        raise UserError(f"{refusal}: {blank:.0%} of the undistorted image would be blank; {advice}")
    return result, K


def _make_lens_error(lens: Lens) -> UserError:
    return UserError(
        f"the camera {lens.model} {lens.width} x {lens.height} with parameters {list(lens.params)} is impossible: "
        f"expected positive sizes and focal lengths, in px, and finite numbers; estimate the cameras again"
    )
