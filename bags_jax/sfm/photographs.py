"""A folder of photographs as cameras leave it: rotated by EXIF, HEIC, several cameras."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps

from bags_jax.data.images import read_photo_size
from bags_jax.data.pairing import PHOTO_SUFFIXES, list_photos, name_some
from bags_jax.errors import UserError

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
SUFFIXES = (*PHOTO_SUFFIXES, *HEIC_SUFFIXES)
JPEG_QUALITY = 95
_ORIENTATION, _MODEL = 0x0112, 0x0110
_EXIF_FOLDER, _FOCAL_LENGTH = 0x8769, 0x920A  # mm


@dataclasses.dataclass(frozen=True)
class CameraGroup:
    """Photographs that share one camera: size, model and focal length are the same."""

    width: int  # px
    height: int  # px
    model: str  # by EXIF; "": unknown
    focal_mm: float  # by EXIF; 0: unknown
    names: tuple[str, ...]


def list_sources(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns every photograph below a folder by its relative name, HEIC included, sorted.

    Raises:
      PermissionError: a folder may not be read.
    """
    heic = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in HEIC_SUFFIXES and not path.name.startswith(".") and path.is_file()
    }
    return dict(sorted({**list_photos(folder), **heic}.items()))


def copy_upright(
    sources: dict[str, pathlib.Path], folder: pathlib.Path, *, report: Callable[[int], Any] = lambda num: None
) -> tuple[str, ...]:
    """Copies photographs into a folder, upright: those that EXIF rotates are rotated, HEIC becomes JPEG.

    EXIF data (focal length, GPS) are kept. A photograph that needs no change is copied byte by byte.

    Returns:
      Notes for the user.
    Raises:
      UserError: a file is no picture, HEIC cannot be decoded here, or two files would get one name.
    """
    converted, turned = [], []
    names = {source: rename(source) for source in sources}
    if len(set(names.values())) < len(names):
        twice = sorted(source for source, name in names.items() if list(names.values()).count(name) > 1)
        raise UserError(f"{name_some(twice)} would get the same name as JPEG: keep one of them")
    for source, path in sources.items():
        target = folder / names[source]
        target.parent.mkdir(parents=True, exist_ok=True)
        is_heic = path.suffix.lower() in HEIC_SUFFIXES
        is_turned = _copy(path, target, is_heic=is_heic)
        if is_heic:
            converted.append(source)
        elif is_turned:
            turned.append(source)
        report(1)
    notes = []
    if converted:
        notes.append(f"{len(converted)} HEIC photographs were converted to JPEG: {name_some(converted)}")
    if turned:
        notes.append(f"{len(turned)} photographs were turned upright, as their EXIF says: {name_some(turned)}")
    return tuple(notes)


def group_by_camera(photos: dict[str, pathlib.Path]) -> list[CameraGroup]:
    """Groups photographs by size, model and focal length, the largest group first.

    Raises:
      UserError: a file is no picture.
    """
    groups: dict[tuple[int, int, str, float], list[str]] = {}
    for name, path in photos.items():
        groups.setdefault((*read_photo_size(path), *_read_camera(path)), []).append(name)
    found = [CameraGroup(*key, tuple(names)) for key, names in groups.items()]
    return sorted(found, key=lambda group: -len(group.names))


def describe_cameras(groups: Sequence[CameraGroup]) -> tuple[str, ...]:
    """Returns a note for the user if the photographs are of several cameras."""
    if len(groups) < 2:
        return ()
    each = [
        f"{len(group.names)} of {group.width} x {group.height} px"
        + (
            f" ({' '.join(filter(None, [group.model, f'{group.focal_mm:g} mm' if group.focal_mm else '']))})"
            if group.model or group.focal_mm
            else ""
        )
        for group in groups
    ]
    return (f"the photographs are of {len(groups)} cameras or zooms, each gets its own lens: {name_some(each, 4)}",)


def rename(source: str) -> str:
    """Returns the name of a copy: HEIC becomes JPEG."""
    path = pathlib.PurePosixPath(source)
    return path.with_suffix(".jpg").as_posix() if path.suffix.lower() in HEIC_SUFFIXES else source


def _copy(path: pathlib.Path, target: pathlib.Path, *, is_heic: bool) -> bool:
    """Copies a photograph, upright. Returns True if its pixels were rotated."""
    if is_heic:
        _load_heic(path)
    else:
        read_photo_size(path)  # says which file is no picture
    try:
        with Image.open(path) as photo:
            exif = photo.getexif()
            is_turned = exif.get(_ORIENTATION, 1) != 1
            if not is_turned and not is_heic:
                shutil.copyfile(path, target)
                return False
            upright = ImageOps.exif_transpose(photo)
            options: dict[str, Any] = {"exif": upright.getexif().tobytes()}
            if target.suffix.lower() in (".jpg", ".jpeg"):
                upright = upright.convert("RGB")
                options |= {"quality": JPEG_QUALITY, "subsampling": 0}
            upright.save(target, **options)
            return is_turned
    except Exception as error:  # PIL's readers raise far more than OSError on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} as a picture ({reason}): replace the file, or remove it") from error


def _load_heic(path: pathlib.Path) -> None:
    try:
        import pi_heif
    except ImportError as error:
        raise UserError(
            f"{path} is HEIC, which needs pi-heif: pip install 'bags-jax[heic]', or export the photographs as JPEG"
        ) from error
    pi_heif.register_heif_opener()


def _read_camera(path: pathlib.Path) -> tuple[str, float]:
    """Returns the model of the camera and the focal length in mm, by EXIF; "" and 0 where they are not said."""
    with Image.open(path) as photo:
        try:
            exif = photo.getexif()
            model = str(exif.get(_MODEL, "")).strip("\0 ")
            focal = float(exif.get_ifd(_EXIF_FOLDER).get(_FOCAL_LENGTH, 0.0))
        except Exception:  # noqa: BLE001 - damaged EXIF raises anything, and is not needed
            return "", 0.0
    return model, focal if focal > 0 else 0.0
