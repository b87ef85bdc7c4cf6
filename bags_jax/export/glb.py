"""Writes and reads Gaussians in GLB files: binary glTF 2.0 with the extension KHR_gaussian_splatting.

One primitive of points. Attributes hold activated values, float32: POSITION, ROTATION (unit quaternion xyzw), SCALE
(standard deviations, scene units), OPACITY in [0, 1], and SH_DEGREE_l_COEF_n (RGB), with the basis and signs of 3DGS.
glTF is right-handed with +Y up. COLOR_0 lets a viewer without the extension draw coloured points.
"""

import json
import os
import pathlib
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bags_jax.atomic import write_atomic
from bags_jax.errors import UserError
from bags_jax.spherical_harmonics import SH_C0, degree_of
from bags_jax.structs import Gaussians

EXTENSION = "KHR_gaussian_splatting"
_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_POINTS, _ARRAY_BUFFER = 0, 34962
_TYPES = {np.dtype("<f4"): 5126, np.dtype("u1"): 5121}
_SHAPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
_OPAQUE = 1 - 2**-24  # the largest opacity below 1 in float32: its logit is finite


def write_glb(path: str | os.PathLike, gaussians: Gaussians) -> None:
    """Writes a GLB file. The write is atomic.

    Args:
      path: the file.
      gaussians: living Gaussians in the frame of the file (+Y up), with the 3D filter baked in (see `ply.bake_filter`).
    Raises:
      UserError: values are not finite, or the path cannot be written.
    """
    columns = _activate(gaussians)
    num = len(gaussians.means)
    if not all(np.all(np.isfinite(values)) for values in columns.values()):
        raise UserError(f"{num} Gaussians to export hold NaN or infinity: export an earlier checkpoint")
    views, accessors, body = [], [], b""
    for name, values in columns.items():
        data = values.tobytes()
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(data), "target": _ARRAY_BUFFER})
        accessor: dict[str, Any] = {"bufferView": len(accessors), "componentType": _TYPES[values.dtype], "count": num}
        accessor["type"] = _SHAPES[values.shape[1]]
        if name == "POSITION":
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        if values.dtype == np.uint8:
            accessor["normalized"] = True
        accessors.append(accessor)
        body += data
    splats = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    splats |= {"projection": "perspective", "sortingMethod": "cameraDistance"}
    primitive = {"mode": _POINTS, "attributes": {name: i for i, name in enumerate(columns)}}
    document = {
        "asset": {"version": "2.0", "generator": "bags-jax"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive | {"extensions": {EXTENSION: splats}}]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
    }
    write_atomic(path, _pack(json.dumps(document, separators=(",", ":")).encode(), body))


def read_glb(path: str | os.PathLike) -> Gaussians:
    """Reads Gaussians from a GLB as `write_glb` writes it: one primitive, float32, no compression, no node transform.

    Raises:
      UserError: no file, or not such a GLB.
    """
    path = pathlib.Path(path)
    try:
        document, body = _unpack(path.read_bytes())
        attributes = document["meshes"][0]["primitives"][0]["attributes"]
        columns = {name: _read_accessor(document, body, index) for name, index in attributes.items()}
        coefficients = [columns[name] for name in _harmonic_names(len(columns)) if name in columns]
        degree_of(len(coefficients))
        opacities = np.clip(columns[f"{EXTENSION}:OPACITY"][:, 0].astype(np.float64), 2**-24, _OPAQUE)
        harmonics = np.stack(coefficients, axis=1)
        return Gaussians(
            means=jnp.asarray(columns["POSITION"]),
            quats=jnp.asarray(np.roll(columns[f"{EXTENSION}:ROTATION"], 1, axis=1)),
            log_scales=jnp.asarray(np.log(columns[f"{EXTENSION}:SCALE"])),
            logit_opacities=jnp.asarray(np.log(opacities / (1 - opacities)), jnp.float32),
            sh_dc=jnp.asarray(harmonics[:, :1]),
            sh_rest=jnp.asarray(harmonics[:, 1:]),
        )
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give the path of a .glb file") from error
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise UserError(f"{path} is no GLB of Gaussians as bags-jax writes it ({error}): export it again") from error


def _activate(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Returns the attributes in the order of the file: float32, or 8 bits for the colour of the points."""
    quats = np.asarray(gaussians.quats, np.float64)
    norms = np.linalg.norm(quats, axis=1, keepdims=True)
    quats = np.where(norms > 0, quats / np.where(norms > 0, norms, 1.0), [1.0, 0, 0, 0])
    opacities = 1 / (1 + np.exp(-np.asarray(gaussians.logit_opacities, np.float64)[:, None]))
    colors = np.clip(0.5 + SH_C0 * np.asarray(gaussians.sh_dc)[:, 0], 0, 1)
    harmonics = np.concatenate([gaussians.sh_dc, gaussians.sh_rest], axis=1)
    columns = {
        "POSITION": gaussians.means,
        f"{EXTENSION}:ROTATION": np.roll(quats, -1, axis=1),
        f"{EXTENSION}:SCALE": np.exp(np.asarray(gaussians.log_scales, np.float64)),
        f"{EXTENSION}:OPACITY": opacities,
    }
    columns |= {name: harmonics[:, i] for i, name in enumerate(_harmonic_names(harmonics.shape[1]))}
    columns = {name: np.ascontiguousarray(values, "<f4") for name, values in columns.items()}
    return columns | {"COLOR_0": np.rint(255 * np.concatenate([colors, opacities], axis=1)).astype(np.uint8)}


def _harmonic_names(num: int) -> list[str]:
    """Returns the attributes of the first `num` coefficients, by degree l, then order."""
    degrees = [int(index**0.5) for index in range(num)]
    return [f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{i - degree**2}" for i, degree in enumerate(degrees)]


def _pack(text: bytes, body: bytes) -> bytes:
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), _JSON) + text + struct.pack("<II", len(body), _BIN) + body
    return struct.pack("<III", _MAGIC, 2, 12 + len(chunks)) + chunks


def _unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    magic, version, length = struct.unpack_from("<III", data)
    if magic != _MAGIC or version != 2 or length != len(data):
        raise ValueError("the header is not that of a whole GLB 2 file")
    size, kind = struct.unpack_from("<II", data, 12)
    size_body, kind_body = struct.unpack_from("<II", data, 20 + size)
    if (kind, kind_body) != (_JSON, _BIN) or 28 + size + size_body != len(data):
        raise ValueError("the chunks are not JSON and BIN")
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def _read_accessor(document: dict[str, Any], body: bytes, index: int) -> Float[np.ndarray, "N D"]:
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    kind = next(dtype for dtype, code in _TYPES.items() if code == accessor["componentType"])
    width = next(width for width, name in _SHAPES.items() if name == accessor["type"])
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    values = np.frombuffer(body, kind, count=width * accessor["count"], offset=start)
    return values.reshape(-1, width).astype(np.float32)
