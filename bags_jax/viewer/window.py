"""One browser window: its choices, its panel, its cameras, and how its camera moves."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from bags_jax.run import Run
from bags_jax.viewer.artist import Shot
from bags_jax.viewer.camera import PhotoCamera, WindowCamera, focus_distance, orbit_up
from bags_jax.viewer.demand import Demand
from bags_jax.viewer.frustums import Frustums, choose_frustum_size, make_thumbnail
from bags_jax.viewer.modes import Mode, Picture
from bags_jax.viewer.panel import Actions, Panel, draw_scale, make_panel
from bags_jax.viewer.splats import Splats

PHOTO_PX = 480  # longer side of the photograph in the panel
OCCLUSION_ROWS = 240  # of the depths that hide frustums behind the scene: more rows cost time and show nothing
QUICK_QUALITY, FINAL_QUALITY = 70, 92  # of JPEG
NEAR_SHARE = 0.002  # of the size of the scene: where the browser begins to draw


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The photographs, modes and points of a run: equal in all its windows."""

    title: str
    names: tuple[str, ...]  # of the photographs
    images: tuple[UInt8[np.ndarray, "_H _W 3"], ...]  # the photographs
    thumbnails: list[UInt8[np.ndarray, "_h _w 3"]]
    modes: list[Mode]
    up: Float[np.ndarray, "3"]  # world frame
    points: Float[np.ndarray, "P 3"]  # of the scene, world frame
    extent: float  # scene units
    num_steps: int  # of the whole training


class Window:
    """One browser window. client: viser's ClientHandle. Its callbacks come from several threads; `changed` locks.

    Attributes:
      demand: what the window wants and has.
      shot: the picture that it wants; None before its first camera message.
    """

    def __init__(
        self,
        client: Any,
        gallery: Gallery,
        photos: list[PhotoCamera],
        steps: list[int],
        step: int,
        *,
        follows: bool,
        changed: Callable[["Window", bool], None],
        write_picture: Callable[["Window"], None],
    ):
        self.client, self.gallery, self.demand = client, gallery, Demand(moved_at=time.monotonic())
        self._changed, self._photos, self._steps, self._follows = changed, photos, steps, follows
        self.shot = Shot(read_camera(client.camera), Mode.SHARP, 0, step, False)
        self._preparing = client.add_notification(
            "Preparing the first picture", "The renderer is compiled for this window.", loading=True
        )
        actions = Actions(
            choose_mode=lambda mode: self._change(mode=mode),
            choose_photo=self.visit,
            choose_step=self._choose_step,
            follow=self._follow,
            show_cameras=lambda shown: self._frustums.show(shown),
            scale_cameras=lambda zoom: self._frustums.scale(zoom),
            show_splats=lambda shown: self._change(is_drawn_by_browser=shown),
            write_picture=lambda: write_picture(self),
        )
        self._panel: Panel = make_panel(
            client, title=gallery.title, modes=gallery.modes, num_photos=len(photos), actions=actions
        )
        size = choose_frustum_size(np.stack([photo.position for photo in photos]), gallery.extent)
        self._frustums = Frustums(client, photos, gallery.thumbnails, size=size, visit=self.visit)
        self._splats = Splats(client)
        client.camera.near = NEAR_SHARE * gallery.extent
        self._panel.follows.value = follows
        self.visit(0)
        client.camera.on_update(self._see)

    def _see(self, camera: Any) -> None:
        """Takes over the camera of the browser."""
        new, old = read_camera(camera), self.shot.camera
        if new.is_like(old):
            return
        self._change(moves=True, camera=new)
        self._frustums.look_from(np.asarray(new.position))
        photo = self._photos[self.shot.photo]
        if new.aspect != old.aspect and np.allclose(new.position, photo.position, atol=1e-4 * self.gallery.extent):
            camera.fov = photo.fov_of_window(new.aspect)  # the window was resized: show the whole photograph again

    def _change(self, *, moves: bool = False, **fields: Any) -> None:
        self.shot = dataclasses.replace(self.shot, **fields)
        self._changed(self, moves)

    def visit(self, index: int) -> None:
        """Moves the camera to where a photograph was taken, and shows that photograph in the panel."""
        photo = self._photos[index]
        if (index != self.shot.photo) or not self._panel.photo_name.content:
            self._change(photo=index)
            self._panel.photo.image = make_thumbnail(self.gallery.images[index], PHOTO_PX)
            self._panel.photo_name.content = f"**{index + 1} of {len(self._photos)}**  {self.gallery.names[index]}"
            self._frustums.choose(index)
        self._panel.photo_number.value = index + 1
        with self.client.atomic():
            up = stand_at(self.client.camera, photo, self.gallery, aspect=self.shot.camera.aspect)
            self.client.camera.up_direction = up
        self._see(self.client.camera)  # without waiting for the answer of the browser

    def _choose_step(self, index: int) -> None:
        step = self._steps[min(index, len(self._steps) - 1)]
        if step != self.shot.step:
            self._panel.follows.value = self._follows = False
            self._change(step=step)

    def _follow(self, follows: bool) -> None:
        self._follows = follows
        if follows:
            self.set_steps(self._steps)

    def set_steps(self, steps: list[int]) -> None:
        """Takes over a new list of checkpoints, in order, and shows the last one if the window follows training."""
        self._steps, slider = steps, self._panel.step
        if self._follows and steps[-1] != self.shot.step:
            self._change(step=steps[-1])
        slider.visible = len(steps) > 1
        slider.max = max(2, len(steps))
        if self.shot.step in steps:
            slider.value = steps.index(self.shot.step) + 1

    def place(self, photos: list[PhotoCamera]) -> None:
        """Takes over the poses of a checkpoint."""
        self._photos = photos
        self._frustums.place(photos)

    def tell(self, title: str, body: str) -> None:
        """Shows a message for some seconds."""
        self.client.add_notification(title, body, auto_close_seconds=8.0)

    def describe_step(self, num_gaussians: int) -> None:
        """Writes the step on the panel."""
        shown, last = self.shot.step, self.gallery.num_steps
        place = f" · checkpoint {self._steps.index(shown) + 1} of {len(self._steps)}" if shown in self._steps else ""
        self._panel.step_name.content = f"**Step {shown:,}**{place}"
        state = (
            "Training is done"
            if self._steps[-1] >= last
            else f"Newest checkpoint: step {self._steps[-1]:,} of {last:,}"
        )
        self._panel.status.content = f"{state} · {num_gaussians:,} Gaussians"

    def show(self, picture: Picture, *, is_final: bool, seconds: float | None) -> None:
        """Sends a picture to the browser. seconds: that it took; None: not known."""
        self._splats.hide()
        every = max(1, picture.depths.shape[0] // OCCLUSION_ROWS)
        self.client.scene.set_background_image(
            picture.pixels,
            format="jpeg",
            jpeg_quality=FINAL_QUALITY if is_final else QUICK_QUALITY,
            depth=picture.depths[::every, ::every],
        )
        self._end_preparing()
        html = draw_scale(picture.scale) if picture.scale else ""
        if self._panel.scale.content != html:
            self._panel.scale.content = html
        self._panel.scale.visible = bool(html)
        if is_final:
            height, width = picture.pixels.shape[:2]
            note = f"{picture.note}\n\n" if picture.note else ""
            time_ms = f" in {1000 * seconds:.0f} ms" if seconds else ""
            self._panel.frame.content = f"{note}{width} × {height} px{time_ms}"
            self._panel.frame.visible = True

    def show_splats(self, run: Run) -> None:
        """Lets the browser draw the splats of a run, before the background colour of the scene."""
        self._splats.show(run)
        color = np.round(255 * np.asarray(run.scene.background)).astype(np.uint8)
        self.client.scene.set_background_image(np.tile(color, (8, 8, 1)), format="png")
        self._end_preparing()
        self._panel.scale.visible = self._panel.frame.visible = False

    def _end_preparing(self) -> None:
        if self._preparing is not None:
            self._preparing.remove()
            self._preparing = None


def stand_at(camera: Any, photo: PhotoCamera, gallery: Gallery, *, aspect: float) -> Float[np.ndarray, "3"]:
    """Moves a camera to where a photograph was taken, with the whole photograph in view.

    Args:
      camera: viser's CameraHandle, or the server's initial camera.
      photo: camera of the photograph.
      gallery: up direction, points and size of the scene.
      aspect: of the window.
    Returns:
      the up direction that the camera needs; viser's two kinds of cameras name it differently.
    """
    distance, up = (
        focus_distance(photo.viewmat, gallery.points, otherwise=gallery.extent),
        orbit_up(photo.viewmat, gallery.up),
    )
    camera.position = photo.position
    camera.look_at = photo.position + distance * photo.viewmat[2, :3]
    camera.fov = photo.fov_of_window(aspect)
    return up


def read_camera(camera: Any) -> WindowCamera:
    """The camera of a window. camera: viser's CameraHandle."""
    (w, x, y, z), position = camera.wxyz.tolist(), camera.position.tolist()
    size = {"width": max(1, int(camera.image_width)), "height": max(1, int(camera.image_height))}
    return WindowCamera((w, x, y, z), (position[0], position[1], position[2]), float(camera.fov), **size)
