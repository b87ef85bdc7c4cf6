"""Drives a headless Chromium through its debugging pipe (Chrome DevTools Protocol), with the standard library alone."""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WEBGL_FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU
SECONDS = 60  # to wait for one answer, on a busy machine
# Chromium reads its commands from file 3 and answers on file 4.
_START = """
import os, sys
copies = [os.dup(int(file)) for file in sys.argv[1:3]]
copies = [os.dup(os.dup(os.dup(file))) for file in copies]  # above 4
for copy, file in zip(copies, (3, 4)):
    os.dup2(copy, file)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """The program; None: not installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A context manager: one tab of a browser of its own. `problems` collects console errors, exceptions and failed loads."""

    def __init__(self, *, width: int = 1280, height: int = 900, webgl: bool = False):
        self._flags = WEBGL_FLAGS if webgl else ["--disable-gpu"]
        self.problems: list[str] = []
        self._size, self._id, self._rest = (width, height), 0, b""
        self._waiting: list[dict] = []
        self._session = ""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        program = find_chromium()
        assert program
        flags = ["--headless=new", "--no-sandbox", *self._flags, "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._folder.name}"]
        flags += ["--window-size={},{}".format(*self._size)]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _START, str(theirs_in), str(theirs_out), program, *flags],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        (page,) = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_) -> None:
        try:
            self._session = ""
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
        os.close(self._write)
        os.close(self._read)
        self._folder.cleanup()

    def send(self, method: str, **parameters: Any) -> dict:
        """Sends one command and returns its result."""
        self._id += 1
        command = {"id": self._id, "method": method, "params": parameters}
        command |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._id:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _receive(self) -> dict:
        stop = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, stop - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer from Chromium in {SECONDS} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError("Chromium has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict) -> None:
        method, said = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.problems.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self._waiting.append(said["request"])

    def requests(self) -> list[str]:
        """Addresses that the page asked for, without data: URIs."""
        self.run("0")
        return [request["url"] for request in self._waiting if not request["url"].startswith("data:")]

    def open(self, path: pathlib.Path) -> None:
        """Opens a file and waits until it is loaded."""
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def browse(self, address: str) -> None:
        """Opens an address and waits until it is loaded."""
        self.send("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(address)})")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; waits for a promise."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until an expression of the page is true."""
        stop = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > stop:
                raise TimeoutError(f"{condition} did not become true in {SECONDS} s")
            time.sleep(0.05)

    def click(self, x: float, y: float) -> None:
        """Clicks at a place of the window, px."""
        where = {"x": x, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **where)

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """Drags from one place of the window to another, px."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", stop), ("mouseReleased", stop)):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def press(self, key: str) -> None:
        """Presses a key with a name, such as ArrowRight."""
        code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: pathlib.Path, clip: dict | None = None) -> None:
        """Writes the window, or a part of it, as PNG."""
        part = {"clip": {**clip, "scale": 1}} if clip else {}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **part)["data"]))
