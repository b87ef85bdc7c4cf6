"""Writes and reads Gaussians in the PLY layout of 3D Gaussian Splatting viewers.

One vertex per Gaussian, binary little endian, float32: x y z, nx ny nz (zero), f_dc_0..2, f_rest_* (channel by
channel: all red coefficients, then green, then blue), opacity (logit), scale_0..2 (log), rot_0..3 (wxyz, any norm).
"""

import dataclasses
import math
import os
import pathlib
import re
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bags_jax.atomic import write_atomic
from bags_jax.errors import UserError
from bags_jax.structs import Gaussians

_PLY_NAMES = {"i1": "char int8", "u1": "uchar uint8", "<i2": "short int16", "<u2": "ushort uint16", "<i4": "int int32"}
_PLY_NAMES |= {"<u4": "uint uint32", "<f4": "float float32", "<f8": "double float64"}
_NUMPY_TYPES = {name: kind for kind, names in _PLY_NAMES.items() for name in names.split()}
_LONGEST_LINE = 4096  # bytes; limits the search for a line end in files that are not PLY
_REQUIRED = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2") + tuple(
    f"rot_{i}" for i in range(4)
)


def bake_filter(gaussians: Gaussians, filter_3d: Float[Array | np.ndarray, "N"]) -> Gaussians:
    """Applies Mip-Splatting's 3D filter to scales and opacities, for renderers without that filter.

    s' = sqrt(s^2 + f^2) and o' = o sqrt(prod s^2 / prod(s^2 + f^2))  (Mip-Splatting, Yu et al. 2024: 3D smoothing
    filter). Computes logarithms in float64: tiny scales do not underflow. A filter of 0 changes nothing.

    Args:
      gaussians: before activation.
      filter_3d: standard deviation of the filter, scene units, at least 0.
    Raises:
      UserError: filter_3d has another length than the Gaussians, or is negative, NaN or infinite.
    """
    filter_3d = np.asarray(filter_3d, np.float64)
    log_scales = np.asarray(gaussians.log_scales, np.float64)
    if filter_3d.shape != log_scales.shape[:1] or not np.all(np.isfinite(filter_3d) & (filter_3d >= 0)):
        raise UserError(
            f"filter_3d of shape {filter_3d.shape} does not fit {len(log_scales)} Gaussians; expected one finite value "
            "of at least 0 per Gaussian: pass the same rows of TrainState.filter_3d and TrainState.gaussians"
        )
    with np.errstate(divide="ignore"):  # log 0 = -inf is correct for a filter of 0
        baked = 0.5 * np.logaddexp(2 * log_scales, 2 * np.log(filter_3d)[:, None])
    logits = np.asarray(gaussians.logit_opacities, np.float64)
    log_opacities = -np.logaddexp(0.0, -logits) + np.sum(log_scales - baked, axis=-1)
    # log(o / (1 - o)); expm1 is accurate for opacities near 1. A filter of 0 keeps the logit bit for bit.
    with np.errstate(divide="ignore"):
        baked_logits = log_opacities - np.log(-np.expm1(log_opacities))
    return dataclasses.replace(
        gaussians,
        log_scales=jnp.asarray(baked, jnp.float32),
        logit_opacities=jnp.asarray(np.where(filter_3d > 0, baked_logits, logits), jnp.float32),
    )


def write_ply(
    path: str | os.PathLike, gaussians: Gaussians, filter_3d: Float[Array | np.ndarray, "N"] | None = None
) -> None:
    """Writes a PLY that ordinary splat viewers show as the trained scene; creates its folder. The write is atomic.

    Bakes the 3D filter into the Gaussians (see `bake_filter`). The 2D filter acts on the screen and cannot be baked:
    the header's `comment SplatRenderMode: mip` tells viewers to apply their own. Viewers that ignore the comment draw
    splats smaller than a pixel too opaque.

    Args:
      path: the file.
      gaussians: living Gaussians only, of any SH degree.
      filter_3d: Mip-Splatting's 3D filter, scene units; None: no filter, or already baked.
    Raises:
      UserError: values are not finite; the number of coefficients belongs to no SH degree; filter_3d does not fit; or
        the path cannot be written.
    """
    if filter_3d is not None:
        gaussians = bake_filter(gaussians, filter_3d)
    num, num_rest = gaussians.sh_rest.shape[:2]
    _check_num_rest(num_rest, where="the Gaussians to export")
    rest = np.swapaxes(np.asarray(gaussians.sh_rest), 1, 2).reshape(num, 3 * num_rest)
    columns = {
        "x y z": gaussians.means,
        "nx ny nz": np.zeros((num, 3)),
        "f_dc_0 f_dc_1 f_dc_2": np.reshape(gaussians.sh_dc, (num, 3)),
        " ".join(f"f_rest_{i}" for i in range(3 * num_rest)): rest,
        "opacity": np.reshape(gaussians.logit_opacities, (num, 1)),
        "scale_0 scale_1 scale_2": gaussians.log_scales,
        "rot_0 rot_1 rot_2 rot_3": gaussians.quats,
    }
    names = " ".join(columns).split()
    table = np.concatenate([np.asarray(values, np.float32) for values in columns.values()], axis=1)
    if not np.all(np.isfinite(table)):
        bad = int(np.sum(~np.isfinite(table).all(axis=1)))
        raise UserError(f"{bad} of {num} Gaussians to export hold NaN or infinity: export an earlier checkpoint")
    header = ["ply", "format binary_little_endian 1.0", "comment SplatRenderMode: mip", f"element vertex {num}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    write_atomic(path, "\n".join(header).encode() + table.astype("<f4").tobytes())


def read_ply(path: str | os.PathLike) -> Gaussians:
    """Reads Gaussians from a PLY in the standard layout. Properties may have any order; unknown ones are ignored.

    Bakes a `filter_3D` property, which the releases of Mip-Splatting and BAGS write (see `bake_filter`).

    Raises:
      UserError: no file, not a PLY, ASCII or big endian, truncated, properties missing, or values not finite.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            num, row = _read_header(file, path)
            need, have = num * row.itemsize, os.fstat(file.fileno()).st_size - file.tell()
            body = file.read(need) if need <= have else b""
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give the path of a .ply file") from error
    names = row.names or ()
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; expected the uncompressed 3DGS layout: export it again")
    if len(body) < need:
        raise UserError(f"{path} is cut short: {num} Gaussians need {need} bytes, the file has {have}: copy it again")
    rows = np.frombuffer(body, row, count=num)
    num_rest = sum(name.startswith("f_rest_") for name in names)
    if num_rest % 3 or any(f"f_rest_{i}" not in names for i in range(num_rest)):
        raise UserError(
            f"{path} has {num_rest} f_rest properties; expected f_rest_0 onwards, 3 per SH coefficient: export it again"
        )
    _check_num_rest(num_rest // 3, where=str(path))

    def columns(*names: str) -> np.ndarray:
        table = np.stack([rows[name].astype(np.float32) for name in names], axis=1) if names else np.zeros((num, 0))
        if not np.all(np.isfinite(table)):
            raise UserError(f"{path} holds NaN or infinity in {names[0]} ..; expected finite values: export it again")
        return table.astype(np.float32)

    rest = columns(*(f"f_rest_{i}" for i in range(num_rest))).reshape(num, 3, num_rest // 3)
    gaussians = Gaussians(
        means=jnp.asarray(columns("x", "y", "z")),
        quats=jnp.asarray(columns("rot_0", "rot_1", "rot_2", "rot_3")),
        log_scales=jnp.asarray(columns("scale_0", "scale_1", "scale_2")),
        logit_opacities=jnp.asarray(columns("opacity")[:, 0]),
        sh_dc=jnp.asarray(columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None, :]),
        sh_rest=jnp.asarray(np.swapaxes(rest, 1, 2)),
    )
    return bake_filter(gaussians, columns("filter_3D")[:, 0]) if "filter_3D" in names else gaussians


def _check_num_rest(num_rest: int, *, where: str) -> None:
    if math.isqrt(num_rest + 1) ** 2 != num_rest + 1:
        raise UserError(
            f"{where}: {num_rest} SH coefficients after the first belong to no degree; "
            "expected 0, 3, 8 or 15 per channel"
        )


def _read_header(file: BinaryIO, path: pathlib.Path) -> tuple[int, np.dtype]:
    """Returns the number of vertices and the layout of one. Leaves the file at the first vertex."""

    def line() -> list[str]:
        raw = file.readline(_LONGEST_LINE)
        if not raw.endswith(b"\n"):
            raise UserError(f"{path} ends or has no line end inside its header; expected a PLY file: copy it again")
        return raw.decode("ascii", "replace").split()

    if file.read(3) != b"ply" or line():
        raise UserError(f"{path} does not start with 'ply'; expected a PLY file of Gaussians: check the path")
    elements: list[tuple[str, int]] = []
    kinds: list[str] = []
    fields: list[tuple[str, str]] = []
    while (words := line()) != ["end_header"]:
        match words:
            case ["format", kind, _]:
                kinds.append(kind)
            case ["element", name, count] if re.fullmatch("[0-9]{1,15}", count):
                elements.append((name, int(count)))
            case ["property", kind, name] if kind in _NUMPY_TYPES and elements:
                if elements[-1][0] == "vertex":
                    fields.append((name, _NUMPY_TYPES[kind]))
            case ["property", "list", _, _, _] if elements and elements[-1][0] != "vertex":
                pass  # an element after the vertices, such as faces: ignored
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise UserError(
                    f"{path}: unknown header line {' '.join(words)[:80]!r}; expected the standard 3DGS layout"
                )
    if kinds != ["binary_little_endian"]:
        raise UserError(
            f"{path} has format {' '.join(kinds) or 'none'}; expected binary_little_endian: export it again"
        )
    if not elements or elements[0][0] != "vertex":
        found = elements[0][0] if elements else "nothing"
        raise UserError(f"{path} starts with element {found!r}; expected vertex: export it as an uncompressed 3DGS PLY")
    if len({name for name, _ in fields}) < len(fields):
        raise UserError(f"{path} declares a vertex property twice; expected each property once: export it again")
    return elements[0][1], np.dtype(fields)
