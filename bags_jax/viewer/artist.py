"""Draws the pictures of all windows: knows which scenes are on the device, what is compiled, and how fast it draws."""

import dataclasses
import time

import numpy as np

from bags_jax.run import Run
from bags_jax.viewer.camera import PhotoCamera, WindowCamera
from bags_jax.viewer.follow import History
from bags_jax.viewer.modes import OF_BLUR, Mode, Picture, draw
from bags_jax.viewer.renders import Buffers, photo_cameras
from bags_jax.viewer.resolution import MOVING_S, RESTING_S, Speed, picture_width, useful_heights

SCENES_KEPT = 2  # on the device


@dataclasses.dataclass(frozen=True)
class Shot:
    """A request for one picture: camera, mode, photograph and checkpoint."""

    camera: WindowCamera
    mode: Mode
    photo: int  # index of a training view
    step: int
    is_drawn_by_browser: bool  # its sharp pictures

    @property
    def is_of_browser(self) -> bool:
        """True if the browser draws the scene itself."""
        return self.is_drawn_by_browser and self.mode is Mode.SHARP


@dataclasses.dataclass(frozen=True)
class Scene:
    """The run at one step, on the device."""

    run: Run
    photos: list[PhotoCamera]  # cameras of the training views

    @property
    def num_gaussians(self) -> int:
        """Number of living Gaussians."""
        return int(np.count_nonzero(self.run.state.alive))


class Artist:
    """For one thread."""

    def __init__(self, history: History):
        self._history, self._buffers = history, Buffers()
        self._scenes: dict[int, Scene] = {}  # by step, the latest last
        self._speeds = {mode: Speed() for mode in Mode}
        self._compiled: set = set()

    def scene(self, step: int) -> Scene:
        """Raises UserError if the checkpoint is gone or cannot be read."""
        found = self._scenes.pop(step, None)
        if found is None:
            run = self._history.run(step)
            found = Scene(run, photo_cameras(run))
        self._scenes[step] = found
        while len(self._scenes) > SCENES_KEPT:
            self._scenes.pop(next(iter(self._scenes)))
        return found

    def final_height(self, shot: Shot) -> int:
        """Height of the picture of a camera that rests, px."""
        camera = shot.camera
        heights = useful_heights(camera.height)
        return self._speeds[shot.mode].choose_height(heights, camera.aspect, seconds=RESTING_S)

    def quick_height(self, shot: Shot) -> int:
        """Height of the picture of a camera that moves, px: one that is compiled, if there is any."""
        scene, camera = self.scene(shot.step), shot.camera
        heights = [h for h in useful_heights(camera.height) if h <= self.final_height(shot)]
        compiled = [h for h in heights if not self._missing(scene, shot, h)]
        return self._speeds[shot.mode].choose_height(compiled or heights, camera.aspect, seconds=MOVING_S)

    def draw(self, shot: Shot, height: int) -> tuple[Picture, float | None]:
        """Draws a picture and learns how long that takes, s: None if something was compiled for it.

        Raises:
          UserError: the checkpoint is gone or cannot be read.
        """
        scene, width = self.scene(shot.step), picture_width(height, shot.camera.aspect)
        missing = self._missing(scene, shot, height)
        started = time.monotonic()
        size = width, height
        picture = draw(scene.run, self._buffers, shot.mode, shot.camera, shot.photo, size, scene.photos)
        seconds = time.monotonic() - started
        if missing:
            self._compiled |= missing
            return picture, None
        self._speeds[shot.mode] = self._speeds[shot.mode].add(height, width * height, seconds)
        return picture, seconds

    def compile_ahead(self, shot: Shot) -> bool:
        """Compiles the size that this camera will need when it moves; returns whether there was anything to compile."""
        heights = [h for h in useful_heights(shot.camera.height) if h <= self.final_height(shot)]
        wanted = self._speeds[shot.mode].choose_height(heights, shot.camera.aspect, seconds=MOVING_S)
        is_missing = not shot.is_of_browser and bool(self._missing(self.scene(shot.step), shot, wanted))
        if is_missing:
            self.draw(shot, wanted)
        return is_missing

    def _missing(self, scene: Scene, shot: Shot, height: int) -> set:
        """Lists the programs that a picture still has to compile: the render at its size, and the blur of the stage."""
        rows, stage = scene.run.state.alive.shape, scene.run.stage
        needed: set = {(rows, picture_width(height, shot.camera.aspect), height)}
        if shot.mode in OF_BLUR and scene.run.model is not None:
            needed.add((rows, stage))
        return needed - self._compiled
