"""The table of scene formats. A new format is one file with its reader, and one line here (docs/extending)."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from bags_jax.data import blender, colmap, llff, nerfstudio, realx3d
from bags_jax.data.capture import Capture
from bags_jax.data.pairing import list_photos
from bags_jax.errors import UserError


@runtime_checkable
class Reader(Protocol):
    """Reads the files of one format, without decoding photographs."""

    def __call__(self, root: pathlib.Path, *, factor: int) -> Capture:
        """Returns the capture in the folder `root`.

        Args:
          root: the scene's folder.
          factor: downscale factor. A reader whose format lists no files passes it to `pairing.find_photo_folder`, which
            accepts images_{factor}/ in place of images/.
        Raises:
          UserError: files that cannot be used; the message is one line that says how to mend them.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Format:
    """One scene format."""

    name: str  # value of `format` in load_scene and in the configuration
    marker: str  # file in the scene's folder by which `format="auto"` recognises the format
    read: Reader
    is_present: Callable[[pathlib.Path], bool] | None = None  # replaces the search for the marker file


# In the order of detection: the first format whose marker is in the folder is read.
FORMATS = (
    Format("realx3d", "train/, test/ and sparse/0", realx3d.read_realx3d, is_present=realx3d.is_realx3d),
    Format("colmap", "sparse/0", colmap.read_colmap, is_present=colmap.has_model),
    Format("blender", blender.TRAIN_FILE, blender.read_blender),
    Format("nerfstudio", nerfstudio.TRANSFORMS_FILE, nerfstudio.read_nerfstudio),
    Format("llff", llff.POSES_FILE, llff.read_llff),
)


def find_format(root: pathlib.Path, name: str) -> Format:
    """Returns the format of that name; for "auto", the first format whose marker is in the folder.

    Raises:
      UserError: an unknown name, or no marker.
    """
    if name != "auto":
        for format in FORMATS:
            if format.name == name:
                return format
        names = ", ".join(["auto", *(format.name for format in FORMATS)])
        raise UserError(f"format {name!r} is unknown: expected one of {names}")
    for format in FORMATS:
        if format.is_present(root) if format.is_present else (root / format.marker).is_file():
            return format
    markers = ", ".join(f"{format.marker} ({format.name})" for format in FORMATS)
    raise UserError(
        f"{root} holds {len(list_photos(root))} photographs but no camera poses: expected one of {markers}; "
        f"bags-jax sfm --root={root} estimates poses from images/"
    )
