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
from bags_jax.viewer.artist import Artist
from bags_jax.viewer.demand import Demand, Order, next_order
from bags_jax.viewer.follow import POLL_S, History
from bags_jax.viewer.frustums import make_thumbnail
from bags_jax.viewer.modes import OF_BLUR, Mode, Picture
from bags_jax.viewer.picture_files import next_picture_path
from bags_jax.viewer.port import check_viewer, describe_address
from bags_jax.viewer.resolution import useful_heights
from bags_jax.viewer.window import Gallery, Window, stand_at
from bags_jax.workdir import read_settings

MAX_POINTS = 20_000  # of the scene that find a window's orbit centre
BRAND = (226, 86, 84)  # coral, from the middle of our colours
LARGEST = 1 << 30  # px: no larger picture is wanted
USUAL_ASPECT = 1.4  # of a window, before it has said its size
IDLE_S = 0.5  # the worker looks at least this often whether it is to end


def open_history(
    workdir: str | pathlib.Path, *, step: int | None = None, data_root: str | None = None, waits: bool = False
) -> History:
    """Reads a run and its newest checkpoint, or that of a step.

    Args:
      workdir: folder of the run.
      step: of the checkpoint that is loaded; None: the last.
      data_root: folder of the capture, where it is another than on the machine that trained.
      waits: begin with the first Gaussians of the run, whatever checkpoints there are.
    Raises:
      UserError: there is no run, no checkpoint or not this one, or something cannot be read.
    """
    path = pathlib.Path(workdir).expanduser()
    settings = dataclasses.replace(read_settings(path), backend="auto")
    if data_root:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, root=data_root))
    history = History(path, make_job(settings))
    if waits:
        history.start_at_zero()
    elif step is None:
        history.load_newest()
    else:
        history.load(step)
    history.look()
    return history


def make_gallery(history: History, run: Run) -> Gallery:
    """Makes the gallery of a run, which all its windows share."""
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


class Viewer:
    """Serves one run to any number of windows. server: viser's ViserServer."""

    def __init__(self, server: Any, history: History, *, first_step: int, follows: bool):
        self._server, self._history, self._first_step, self._follows = server, history, first_step, follows
        self._artist = Artist(history)
        scene = self._artist.scene(first_step)
        self._photos, self.gallery = scene.photos, make_gallery(history, scene.run)
        server.scene.set_up_direction(self.gallery.up)
        server.initial_camera.up = stand_at(server.initial_camera, self._photos[0], self.gallery, aspect=USUAL_ASPECT)
        self._windows: dict[int, Window] = {}
        self._placed: dict[int, int] = {}  # step of the poses that a window shows
        self._to_write: list[Window] = []
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
                windows = dict(self._windows)
                demands: dict[int, Demand] = {number: window.demand for number, window in windows.items()}
                finals = {number: self._artist.final_height(window.shot) for number, window in windows.items()}
                order, wait = next_order(demands, finals, time.monotonic())
            for writer in to_write:
                self._write(writer)
            if order is not None:
                self._serve(windows[order.window], order)
            elif not to_write and not (wait is None and self._compile_ahead(windows)):
                self._rest(demands, min(IDLE_S, wait or IDLE_S))

    def _rest(self, demands: dict[int, Demand], seconds: float) -> None:
        """Waits for a change of any window since `demands` were read."""
        with self._condition:
            versions = {number: demand.version for number, demand in demands.items()}
            self._condition.wait_for(
                lambda: (
                    self._ends
                    or self._to_write
                    or versions != {number: window.demand.version for number, window in self._windows.items()}
                ),
                seconds,
            )

    def _compile_ahead(self, windows: dict[int, Window]) -> bool:
        """Uses idle time; returns whether there was anything to do."""
        try:
            return any(self._artist.compile_ahead(window.shot) for window in windows.values())
        except UserError:  # the checkpoint is gone: `_serve` says so
            return False

    def _serve(self, window: Window, order: Order) -> None:
        """Draws one picture of one window and sends it, unless the window has changed meanwhile."""
        shot, number = window.shot, window.client.client_id
        try:
            scene = self._artist.scene(shot.step)
            height = self._artist.final_height(shot) if order.is_final else self._artist.quick_height(shot)
            picture, seconds = (None, None) if shot.is_of_browser else self._artist.draw(shot, height)
        except UserError as error:  # training has deleted the checkpoint
            window.tell("The checkpoint is gone", str(error))
            window.demand.draw(order.version, LARGEST, time.monotonic())
            return
        with self._condition:
            is_outdated = order.is_final and window.demand.version != order.version
            if is_outdated or number not in self._windows:
                return
            window.demand.draw(order.version, LARGEST if picture is None else height, time.monotonic())
        if self._placed.get(number) != shot.step:
            self._placed[number] = shot.step
            window.place(scene.photos)
            window.describe_step(scene.num_gaussians)
        if picture is None:
            window.show_splats(scene.run)
        else:
            window.show(picture, is_final=order.is_final, seconds=seconds)

    def _write(self, window: Window) -> None:
        """Writes the picture of a window, at the full size of the window, as a file and as a download."""
        shot = window.shot
        try:
            picture, _ = self._artist.draw(shot, useful_heights(shot.camera.height)[-1])
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
        stop_server(server)
        raise UserError(f"port {port} was taken while the viewer started: choose another one")
    server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, brand_color=BRAND)
    server.gui.main_panel.dock_right()
    return server


def stop_server(server: Any) -> None:
    """Stops viser's ViserServer without its message."""
    with contextlib.redirect_stdout(io.StringIO()):
        server.stop()


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
        stop_server(server)
