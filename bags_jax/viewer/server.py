"""The viewer's server: one worker draws for all windows, one thread looks for new checkpoints, viser talks to the browsers."""

import concurrent.futures
import contextlib
import dataclasses
import io
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from bags_jax.errors import UserError
from bags_jax.job import make_job
from bags_jax.report.pictures import write_png
from bags_jax.run import Run
from bags_jax.upright import find_up
from bags_jax.viewer.camera import PhotoCamera
from bags_jax.viewer.demand import Demand, Order, next_order
from bags_jax.viewer.follow import POLL_S, History
from bags_jax.viewer.frustums import make_thumbnail
from bags_jax.viewer.modes import OF_BLUR, Mode, Picture, draw
from bags_jax.viewer.picture_files import next_picture_path
from bags_jax.viewer.port import check_viewer, describe_address
from bags_jax.viewer.renders import Buffers, photo_cameras
from bags_jax.viewer.resolution import MOVING_S, RESTING_S, Speed, picture_width, useful_heights
from bags_jax.viewer.window import Gallery, Shot, Window
from bags_jax.workdir import read_settings

MAX_POINTS = 20_000  # of the scene that find a window's orbit centre
BRAND = (226, 86, 84)  # coral, from the middle of our colours
IDLE_S = 0.5  # the worker looks at least this often whether it is to end


def open_history(
    workdir: str | pathlib.Path, *, step: int | None = None, data_root: str | None = None, waits: bool = False
) -> History:
    """Reads a run and its newest checkpoint, or that of a step.

    Args:
      workdir: folder of the run.
      step: of the checkpoint that is loaded; None: the last.
      data_root: folder of the capture, where it is another than on the machine that trained.
      waits: a run without a checkpoint shows its first Gaussians.
    Raises:
      UserError: there is no run, no checkpoint or not this one, or something cannot be read.
    """
    path = pathlib.Path(workdir).expanduser()
    settings = dataclasses.replace(read_settings(path), backend="auto")
    if data_root:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, root=data_root))
    history = History(path, make_job(settings))
    if waits and not history.list_saved():
        history.start_at_zero()
    else:
        history.load(step)
    history.look()
    return history


def make_gallery(history: History, run: Run) -> Gallery:
    """What all windows of a run share."""
    job, scene = history.job, history.job.scene
    means = np.asarray(run.state.gaussians.means)[np.asarray(run.state.alive)]
    images = tuple(scene.images[i] for i in scene.train_ids)
    points = scene.points if len(scene.points) else means
    return Gallery(
        title=make_title(history.workdir),
        names=tuple(scene.names[i] for i in scene.train_ids),
        images=images,
        thumbnails=[make_thumbnail(image) for image in images],
        modes=[mode for mode in Mode if job.model is not None or mode not in OF_BLUR],
        up=find_up(scene.viewmats[scene.train_ids], points).direction,
        points=means[:: max(1, len(means) // MAX_POINTS)],
        extent=job.extent,
        num_steps=job.settings.num_steps,
    )


def make_title(workdir: pathlib.Path) -> str:
    """Title of the window."""
    return f"BAGS-JAX · {workdir.resolve().name}"


class Scenes:
    """The runs of the steps that were shown last, on the device, with the cameras of their photographs. For one thread."""

    KEPT = 2

    def __init__(self, history: History):
        self._history = history
        self._runs: dict[int, tuple[Run, list[PhotoCamera]]] = {}  # by step, the latest last

    def at(self, step: int) -> tuple[Run, list[PhotoCamera]]:
        """Raises UserError if the checkpoint is gone or cannot be read."""
        found = self._runs.pop(step, None)
        if found is None:
            run = self._history.run(step)
            found = run, photo_cameras(run)
        self._runs[step] = found
        while len(self._runs) > self.KEPT:
            self._runs.pop(next(iter(self._runs)))
        return found


class Viewer:
    """Serves one run to any number of windows. server: viser's ViserServer."""

    def __init__(self, server: Any, history: History, *, first_step: int, follows: bool):
        self._server, self._history, self._first_step, self._follows = server, history, first_step, follows
        self._scenes, self._buffers = Scenes(history), Buffers()
        run, self._photos = self._scenes.at(first_step)
        self.gallery = make_gallery(history, run)
        self._windows: dict[int, Window] = {}
        self._placed: dict[int, int] = {}  # step of the poses that a window shows
        self._to_write: list[Window] = []
        self._speeds: dict[Mode, Speed] = {mode: Speed() for mode in Mode}
        self._compiled: set = set()
        self._condition = threading.Condition(threading.RLock())
        self._ends = False
        self._threads = concurrent.futures.ThreadPoolExecutor(max_workers=2)
        self._futures: list[concurrent.futures.Future] = []
        server.on_client_connect(self._join)
        server.on_client_disconnect(self._leave)

    def start(self) -> None:
        """Starts both threads."""
        self._futures = [self._threads.submit(loop) for loop in (self._work, self._watch)]

    def stop(self) -> None:
        """Ends both threads, after the picture that is being drawn."""
        with self._condition:
            self._ends = True
            self._condition.notify_all()
        self._threads.shutdown()

    def check(self) -> None:
        """Raises the error that has ended a thread: a bug."""
        for future in self._futures:
            if future.done():
                future.result()

    def _join(self, client: Any) -> None:
        steps = self._history.steps()
        step = steps[-1] if self._follows else self._first_step
        window = Window(
            client,
            self.gallery,
            self._photos,
            steps,
            step,
            follows=self._follows,
            changed=self._note_change,
            write_picture=self._order_picture,
        )
        with self._condition:
            self._windows[client.client_id] = window
            self._condition.notify_all()
        window.set_steps(steps)

    def _leave(self, client: Any) -> None:
        with self._condition:
            self._windows.pop(client.client_id, None)
            self._placed.pop(client.client_id, None)

    def _note_change(self, window: Window, moves: bool) -> None:
        with self._condition:
            window.demand.change(time.monotonic(), moves=moves)
            self._condition.notify_all()

    def _order_picture(self, window: Window) -> None:
        with self._condition:
            self._to_write.append(window)
            self._condition.notify_all()

    def _watch(self) -> None:
        """Looks for new checkpoints until the end."""
        while not self._ends:
            before = self._history.steps()
            problem = self._history.look()
            steps = self._history.steps()
            with self._condition:
                windows = list(self._windows.values())
            for window in windows if problem else ():
                window.tell("A checkpoint cannot be read", problem)
            for window in windows if steps != before else ():
                window.set_steps(steps)
            with self._condition:
                self._condition.wait_for(lambda: self._ends, POLL_S)

    def _work(self) -> None:
        """Draws until the end."""
        while True:
            with self._condition:
                if self._ends:
                    return
                to_write, self._to_write = self._to_write, []
                demands: dict[int, Demand] = {number: window.demand for number, window in self._windows.items()}
                finals = {number: self._final_height(window.shot) for number, window in self._windows.items()}
                order, wait = next_order(demands, finals, time.monotonic())
                if order is None and not to_write:
                    self._condition.wait(min(IDLE_S, wait or IDLE_S))
                    continue
                window = self._windows[order.window] if order else None
            for writer in to_write:
                self._write(writer)
            if window is not None and order is not None:
                self._serve(window, order)

    def _final_height(self, shot: Shot) -> int:
        camera = shot.camera
        return self._speeds[shot.mode].choose_height(camera.height, camera.aspect, seconds=RESTING_S)

    def _serve(self, window: Window, order: Order) -> None:
        """Draws one picture of one window and sends it, unless the window has changed meanwhile."""
        shot, height = window.shot, self._final_height(window.shot)
        if not order.is_final:
            camera = shot.camera
            height = min(height, self._speeds[shot.mode].choose_height(camera.height, camera.aspect, seconds=MOVING_S))
        try:
            run, photos = self._scenes.at(shot.step)
        except UserError as error:  # training has deleted the checkpoint
            window.tell("The checkpoint is gone", str(error))
            window.demand.draw(order.version, height, time.monotonic())
            return
        picture, seconds = (None, None) if shot.is_of_browser else self._draw(run, photos, shot, height)
        with self._condition:
            is_gone = window.client.client_id not in self._windows
            is_outdated = order.is_final and window.demand.version != order.version
            if is_gone or is_outdated:
                return
            window.demand.draw(order.version, height if picture else 1 << 30, time.monotonic())
        if self._placed.get(window.client.client_id) != shot.step:
            self._placed[window.client.client_id] = shot.step
            window.place(photos)
            window.describe_step(int(np.count_nonzero(run.state.alive)))
        if picture is None:
            window.show_splats(run)
        else:
            window.show(picture, is_final=order.is_final, seconds=seconds)

    def _draw(self, run: Run, photos: list[PhotoCamera], shot: Shot, height: int) -> tuple[Picture, float | None]:
        """Draws a picture and learns how long that takes, s: None for the first of a size, which is compiled."""
        width = picture_width(height, shot.camera.aspect)
        started = time.monotonic()
        picture = draw(run, self._buffers, shot.mode, shot.camera, shot.photo, (width, height), photos)
        seconds = time.monotonic() - started
        key = shot.mode, width, height, run.state.alive.shape, run.stage
        if key not in self._compiled:
            self._compiled.add(key)
            return picture, None
        self._speeds[shot.mode] = self._speeds[shot.mode].add(height, width * height, seconds)
        return picture, seconds

    def _write(self, window: Window) -> None:
        """Writes the picture of a window, at the full size of the window, as a file and as a download."""
        shot = window.shot
        try:
            run, photos = self._scenes.at(shot.step)
            picture, _ = self._draw(run, photos, shot, useful_heights(shot.camera.height)[-1])
            path = next_picture_path(self._history.workdir, shot.step, shot.mode.name)
            write_png(path, picture.pixels)
        except UserError as error:
            window.tell("No picture was written", str(error))
            return
        window.client.send_file_download(path.name, encode_png(picture), save_immediately=True)
        window.tell("Picture written", str(path))


def encode_png(picture: Picture) -> bytes:
    """A picture as the bytes of a PNG file."""
    encoded = io.BytesIO()
    Image.fromarray(picture.pixels).save(encoded, "PNG")
    return encoded.getvalue()


def start_server(host: str, port: int, title: str) -> Any:
    """Starts viser's ViserServer.

    Raises:
      UserError: viser is not installed, or the port is taken.
    """
    check_viewer(host, port)
    import viser

    with contextlib.redirect_stdout(io.StringIO()):  # viser prints a table
        server = viser.ViserServer(host=host, port=port, label=title, verbose=False)
    if server.get_port() != port:  # taken since the check: viser then looks for another one
        server.stop()
        raise UserError(f"port {port} was taken while the viewer started: choose another one")
    server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, brand_color=BRAND)
    server.gui.main_panel.dock_right()
    return server


def serve(
    history: History,
    *,
    host: str,
    port: int,
    step: int | None = None,
    is_over: Callable[[], bool] = lambda: False,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves a run until Ctrl-C, or until `is_over`, which is asked twice a second.

    Args:
      history: see open_history.
      host, port: address to listen at.
      step: the step that windows show at first; None: they follow the newest checkpoint.
      announce: gets the address for a browser once a window can be opened.
    Raises:
      UserError: viser is not installed, or the port is taken.
    """
    server = start_server(host, port, make_title(history.workdir))
    viewer = None
    try:
        first = history.steps()[-1] if step is None else step
        viewer = Viewer(server, history, first_step=first, follows=step is None)
        server.scene.set_up_direction(viewer.gallery.up)
        viewer.start()
        announce(describe_address(host, port))
        while not is_over():
            viewer.check()
            time.sleep(IDLE_S)
    except KeyboardInterrupt:
        pass
    finally:
        if viewer is not None:
            viewer.stop()
        server.stop()
