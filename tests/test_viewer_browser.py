"""The viewer in a real browser: the page opens, modes and cameras work, windows come and go."""

import time

import numpy as np
import pytest
from PIL import Image

from bags_jax.viewer import server as viewer_server
from bags_jax.viewer.modes import Mode
from bags_jax.viewer.server import Viewer, open_history, start_server
from tests.chromium import Chromium, find_chromium
from tests.test_viewer import free_port
from tests.viewed_run import STEPS, write_run

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")
SECONDS = 60  # to wait for anything, on a busy machine


def wait_for(condition):
    stop = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < stop, "did not come true"
        time.sleep(0.1)
    return found


class Page:
    """A browser with the viewer, and the window that the viewer has for it."""

    def __init__(self, browser, viewer, folder):
        self.browser, self.viewer, self.folder = browser, viewer, folder

    @property
    def window(self):
        return max(self.viewer._windows.items())[1]

    def settle(self):
        """Waits until the final picture of the window is on the screen."""
        wait_for(lambda: self.viewer._windows)
        wait_for(lambda: self.window.demand.drawn_version == self.window.demand.version)
        wait_for(lambda: self.window.demand.drawn_height >= self.viewer._artist.final_height(self.window.shot))
        time.sleep(0.7)  # the browser decodes the picture

    @property
    def width(self):
        """Width of the scene on the screen, px. The window itself may count other pixels, where the browser draws slowly."""
        return self.browser.run("Math.max(...[...document.querySelectorAll('canvas')].map(c => c.clientWidth))")

    def canvas(self):
        """The pixels of the scene, without the panel."""
        self.settle()
        width = self.width
        height = width / self.window.shot.camera.aspect
        self.browser.screenshot(self.folder / "shot.png", {"x": 0, "y": 0, "width": width, "height": height})
        return np.asarray(Image.open(self.folder / "shot.png").convert("RGB")).astype(float)

    def press(self, key):
        code = ("Digit" if key.isdigit() else "Key") + key
        for kind in ("keyDown", "keyUp"):
            where = {"key": key.lower(), "code": code, "windowsVirtualKeyCode": ord(key)}
            self.browser.send("Input.dispatchKeyEvent", type=kind, **where)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    history = open_history(write_run(tmp_path_factory.mktemp("browsed") / "run"))
    server = start_server("127.0.0.1", free_port(), "test")
    viewer = Viewer(server, history, first_step=STEPS[-1], follows=True)
    viewer.start()
    yield viewer
    viewer.stop()
    server.stop()
    viewer.check()


@pytest.fixture(scope="module")
def page(viewer, tmp_path_factory):
    with Chromium(width=900, height=600, webgl=True) as browser:
        browser.browse(f"http://127.0.0.1:{viewer._server.get_port()}")
        page = Page(browser, viewer, tmp_path_factory.mktemp("shots"))
        page.settle()
        close = "document.querySelectorAll('.mantine-Notification-closeButton').forEach(b => b.click())"
        browser.run(close)
        yield page


def test_the_page_opens_with_a_picture(page):
    page.browser.wait("document.title === 'BAGS-JAX · run'")
    canvas = page.canvas()
    assert canvas.std() > 10 and len(np.unique(canvas.reshape(-1, 3), axis=0)) > 500
    text = page.browser.run("document.body.innerText")
    for word in ("1 of 4", "Step 12", "Write PNG", "Camera size"):
        assert word in text


def test_a_mode_switch_changes_the_picture(page):
    sharp = page.canvas()
    for key, mode in (("5", Mode.DEPTH), ("6", Mode.COUNT), ("3", Mode.PHOTO)):
        page.press(key)
        wait_for(lambda mode=mode: page.window.shot.mode is mode)
        assert np.abs(page.canvas() - sharp).mean() > 5, mode
    page.press("1")
    wait_for(lambda: page.window.shot.mode is Mode.SHARP)
    assert np.abs(page.canvas() - sharp).mean() < 1


def find_frustum(window):
    """A photograph whose frustum is in sight: its index, and its place in the window, px."""
    camera = window.shot.camera
    for index, photo in enumerate(window._photos):
        slopes = np.array([photo.width / photo.K[0, 0], photo.height / photo.K[1, 1]]) / 2
        distance = window._frustums._size / np.cbrt(np.prod(slopes) / 3)  # of the picture, as viser draws frustums
        middle = photo.position + distance * photo.viewmat[2, :3]
        point = camera.viewmat[:3, :3] @ middle + camera.viewmat[:3, 3]
        x, y, _ = camera.intrinsics(camera.width, camera.height) @ point / point[2]
        is_seen = point[2] > 0 and 10 < x < camera.width - 10 and 10 < y < camera.height - 10
        if index != window.shot.photo and is_seen and window._frustums._visible[index]:
            return index, float(x), float(y)
    return None


def test_a_click_on_a_frustum_moves_the_camera(page):
    for _ in range(40):
        if found := find_frustum(page.window):
            break
        wheel = {"x": 250, "y": 250, "deltaX": 0, "deltaY": 120}
        page.browser.send("Input.dispatchMouseEvent", type="mouseWheel", **wheel)
        page.settle()
    index, x, y = found
    zoom = page.width / page.window.shot.camera.width
    x, y = x * zoom, y * zoom
    page.browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    time.sleep(0.5)
    page.browser.click(x, y)
    goal = page.window._photos[index]
    wait_for(lambda: np.allclose(page.window.shot.camera.position, goal.position, atol=1e-3))
    page.settle()
    assert page.window.shot.photo == index and f"{index + 1} of 4" in page.browser.run("document.body.innerText")
    np.testing.assert_allclose(page.window.shot.camera.viewmat, goal.viewmat, atol=1e-2)


def test_photographs_and_checkpoints_are_stepped_through(page):
    index = (page.window.shot.photo + 1) % 4
    page.press("N")
    wait_for(lambda: page.window.shot.photo == index)
    newest = page.canvas()
    page.window._choose_step(0)
    wait_for(lambda: "Step 4" in page.browser.run("document.body.innerText"))
    assert newest[..., 0].mean() - page.canvas()[..., 0].mean() > 3, "the later one is redder"
    page.window._follow(True)
    wait_for(lambda: "Step 12" in page.browser.run("document.body.innerText"))


def test_a_picture_is_written(page):
    press = "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Write PNG')).click()"
    page.browser.run(press)
    path = page.viewer._history.workdir / "viewer" / "0001_step12_sharp.png"
    wait_for(path.exists)
    assert Image.open(path).height >= page.window.shot.camera.height


def test_the_browser_draws_the_splats(page):
    before = page.canvas()
    page.browser.run("[...document.querySelectorAll('input[type=checkbox]')].at(-1).click()")
    wait_for(lambda: page.window.shot.is_of_browser)
    time.sleep(3)
    canvas = page.canvas()
    assert canvas.std() > 10 and np.abs(canvas - before).mean() > 0.5
    page.browser.run("[...document.querySelectorAll('input[type=checkbox]')].at(-1).click()")
    wait_for(lambda: not page.window.shot.is_of_browser)


def test_windows_come_and_go(page):
    with Chromium(width=500, height=400, webgl=True) as other:
        other.browse(f"http://127.0.0.1:{page.viewer._server.get_port()}")
        wait_for(lambda: len(page.viewer._windows) == 2)
        mode = page.window.shot.mode
        page.window._change(mode=Mode.DEPTH)
        assert min(page.viewer._windows.items())[1].shot.mode is mode, "each window has its own choices"
    wait_for(lambda: len(page.viewer._windows) == 1)
    page.viewer.check()
    page.settle()


def test_ctrl_c_ends_the_viewer_quietly(viewer, monkeypatch, capfd):
    history, port, said = viewer._history, free_port(), []

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(viewer_server.time, "sleep", interrupt)
    viewer_server.serve(history, host="127.0.0.1", port=port, announce=said.append)
    assert said == [f"http://localhost:{port}"] and not capfd.readouterr().err
