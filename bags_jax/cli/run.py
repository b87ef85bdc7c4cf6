"""Goes from a video or a folder of photographs to a report and a splat in one go.

  bags-jax run walk.mp4 --workdir=runs/mine
  bags-jax run photographs --workdir=runs/mine --config.minutes=30

Estimates the camera poses, trains, evaluates, exports, and opens the report. PATH is a video, a
folder of photographs, or a capture that has camera poses, which are used. The same command
continues an interrupted run where it stopped. Writes into --workdir: capture/ (photographs and
poses), the trained scene, report/index.html and scene.ply.
"""

import json
import os
import pathlib
import sys
import time
import webbrowser
from typing import Any

from absl import flags
from ml_collections import config_flags

from bags_jax.cli.config_flag import read_config_flag
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.config import read_config, shipped_configs
from bags_jax.errors import UserError
from bags_jax.evaluation import evaluate
from bags_jax.export.splat import export
from bags_jax.report.score_text import describe_scores
from bags_jax.sfm.capture_folder import SOURCE_FILE, find_source, has_poses, make_capture
from bags_jax.sfm.reconstruct import describe
from bags_jax.training import train

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Configuration: {', '.join(shipped_configs())} or a Python file. [default: custom]",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: everything is written there.", required=True)
_FRAMES = flags.DEFINE_integer("frames", 0, "Frames to keep of a video; 0: 60 to 150.", lower_bound=0)
_MAX_SIZE = flags.DEFINE_integer(
    "max_size", 800, "Longer side at which features are detected, px: smaller for large blur.", lower_bound=100
)
_OPEN = flags.DEFINE_bool("open", True, "Open the report in the browser at the end, where there is a display.")

SPLAT_FILE = "scene.ply"
CAPTURE_FOLDER = "capture"  # in the working directory


class Stages:
    """Says when each stage begins, and at the end how long each took."""

    def __init__(self, num: int):
        self._num = num
        self._begun: list[tuple[str, float]] = []

    def begin(self, name: str, what: str) -> None:
        """Prints the line of a stage."""
        self._begun.append((name, time.monotonic()))
        print(f"[{len(self._begun)}/{self._num}] {name}: {what}", flush=True)

    def describe(self) -> str:
        """Minutes of each stage."""
        ends = [start for _, start in self._begun[1:]] + [time.monotonic()]
        parts = [f"{name} {(end - start) / 60:.1f}" for (name, start), end in zip(self._begun, ends, strict=True)]
        return f"{(ends[-1] - self._begun[0][1]) / 60:.1f} min: {', '.join(parts)}"


def main(path: str) -> None:
    """Runs all stages on the source at a path."""
    config: Any = read_config_flag(_CONFIG)
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    source = pathlib.Path(path).expanduser()
    check(config, workdir, source)
    use_compilation_cache(str(config.compilation_cache))
    stages = Stages(4)
    stages.begin("cameras", f"poses of {source}")
    config.data.root = str(find_capture(source, workdir).resolve())
    stages.begin("training", "Ctrl-C saves the state")
    train(config, workdir)
    stages.begin("evaluation", "held-out views and the blur of each photograph")
    print(describe_scores(evaluate(workdir)))
    stages.begin("export", str(workdir / SPLAT_FILE))
    export(workdir, workdir / SPLAT_FILE)
    report = workdir / "report" / "index.html"
    print(f"done in {stages.describe()}")
    print(f"splat:  {workdir / SPLAT_FILE}")
    print(f"report: {report}")
    if _OPEN.value and has_display():
        webbrowser.open(report.resolve().as_uri())


def check(config: Any, workdir: pathlib.Path, source: pathlib.Path) -> None:
    """Raises UserError for mistakes that would only be found after the poses, which take minutes."""
    settings = read_config(config)
    if settings.data.format == "procedural":
        raise UserError("--config is an embedded scene, which has no photographs: expected custom, or your own file")
    if settings.data.root:
        raise UserError(
            f"--config.data.root={settings.data.root} came beside {source}: leave it out, the path is the first argument"
        )
    if not has_poses(source):
        find_source(source)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: expected a folder, which may be new")


def find_capture(source: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the photographs with poses: the source itself, or the one in the working directory.

    Raises:
      UserError: the working directory has the capture of another source, or no poses can be estimated.
    """
    if has_poses(source):
        print(f"{source} has camera poses: they are used")
        return source
    capture = workdir / CAPTURE_FOLDER
    if has_poses(capture):
        found = find_source(source).describe()
        note = capture / SOURCE_FILE
        if not note.is_file() or json.loads(note.read_text()) != found:
            raise UserError(f"{capture} was made from another source than {source}: choose another --workdir")
        print(f"poses of an earlier call are used: {capture}")
        return capture
    reconstruction = make_capture(
        source,
        capture,
        max_size=_MAX_SIZE.value,
        num_frames=_FRAMES.value,
        report=lambda line: print(line, flush=True),
        has_bar=True,
    )
    print(describe(reconstruction), flush=True)
    return capture


def has_display() -> bool:
    """True where a browser can show something."""
    is_desktop = sys.platform in ("darwin", "win32") and "SSH_CONNECTION" not in os.environ
    return is_desktop or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def run() -> None:
    """The command `bags-jax run`."""
    if not any(argument.split("=", 1)[0] in ("--config", "-config") for argument in sys.argv[1:]):
        sys.argv.insert(1, "--config=custom")
    launch(main, resumes=True, positional="PATH")
