"""The cameras of the photographs in one window: frustums with thumbnails; a click visits one."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from bags_jax.viewer.camera import PhotoCamera

THUMBNAIL_PX = 160  # longer side
SPACING_SHARE = 0.35  # of the median distance of neighbours: size of a frustum
EXTENT_SHARE = (0.01, 0.08)  # and its limits, as shares of the size of the scene
IN_THE_WAY = 2.5  # frustums nearer to the window's camera than this many of their sizes are hidden
GREY, CHOSEN = (150, 156, 170), (226, 86, 84)


def make_thumbnail(photo: UInt8[np.ndarray, "H W 3"], side: int = THUMBNAIL_PX) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes a photograph to a longer side of `side` px."""
    zoom = side / max(photo.shape[:2])
    size = max(1, round(photo.shape[1] * zoom)), max(1, round(photo.shape[0] * zoom))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def choose_frustum_size(centers: Float[np.ndarray, "V 3"], extent: float) -> float:
    """Size of a frustum, scene units: frustums of neighbours hardly overlap."""
    low, high = (share * extent for share in EXTENT_SHARE)
    if len(centers) < 2:
        return high
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(np.clip(SPACING_SHARE * np.median(distances.min(axis=1)), low, high))


class Frustums:
    """The frustums of one window. client: viser's ClientHandle."""

    def __init__(
        self,
        client: Any,
        photos: list[PhotoCamera],
        thumbnails: list[UInt8[np.ndarray, "_h _w 3"]],
        *,
        size: float,
        visit: Callable[[int], None],
    ):
        self._size, self._shown, self._zoom, self._chosen = size, True, 1.0, 0
        self._eye = np.full(3, np.inf)
        self._centers = np.stack([photo.position for photo in photos])
        self._handles = []
        for index, (photo, thumbnail) in enumerate(zip(photos, thumbnails, strict=True)):
            handle = client.scene.add_camera_frustum(
                f"/cameras/{index:04d}",
                fov=photo.fov,
                aspect=photo.width * photo.K[1, 1] / photo.K[0, 0] / photo.height,
                scale=size,
                thickness=1.5,
                thickness_units="screen",
                color=GREY,
                image=thumbnail,
                format="jpeg",
                wxyz=photo.wxyz,
                position=photo.position,
                cast_shadow=False,
                receive_shadow=False,
            )
            handle.on_click(lambda _, index=index: visit(index))
            self._handles.append(handle)
        self._visible = [True] * len(photos)

    def place(self, photos: list[PhotoCamera]) -> None:
        """Moves the frustums to other poses, as a later checkpoint has them."""
        for handle, photo in zip(self._handles, photos, strict=True):
            handle.position, handle.wxyz = photo.position, photo.wxyz
        self._centers = np.stack([photo.position for photo in photos])
        self._refresh()

    def choose(self, index: int) -> None:
        """Marks one photograph."""
        self._handles[self._chosen].color = GREY
        self._handles[index].color = CHOSEN
        self._chosen = index

    def show(self, is_shown: bool) -> None:
        """Shows or hides all."""
        self._shown = is_shown
        self._refresh()

    def scale(self, zoom: float) -> None:
        """Changes the size of all."""
        self._zoom = zoom
        for handle in self._handles:
            handle.scale = self._size * zoom
        self._refresh()

    def look_from(self, eye: Float[np.ndarray, "3"]) -> None:
        """Hides the frustums that would cover the view of a camera at `eye`, world frame."""
        self._eye = eye
        self._refresh()

    def _refresh(self) -> None:
        distances = np.linalg.norm(self._centers - self._eye, axis=-1)
        visible = self._shown & (distances > IN_THE_WAY * self._size * self._zoom)
        for index in np.flatnonzero(visible != np.array(self._visible)):
            self._handles[index].visible = self._visible[index] = bool(visible[index])
