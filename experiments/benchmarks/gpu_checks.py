"""The checks that need a GPU, in 13 minutes of its time; every table is written as soon as it is known.

  python -m experiments.benchmarks.gpu_checks --only=1 --only=2 --only=3
  python -m experiments.benchmarks.gpu_checks --only=4 --only=5 --blurball=../shared/data/blurball

1 it runs (tests, a :smoke training, its checkpoint on the CPU and back)   2 where the time goes   3 beside gsplat
4 training on blurball   5 compilation, cold and warm. Each part is a process of its own with a time of its own, so that
what hangs or fails takes nothing else with it. What does not fit into --seconds is left out, and said to be.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.errors import UserError

_FOLDER = flags.DEFINE_string("folder", "gpu_checks", "Where logs, rows and summary.md are written.")
_BLURBALL = flags.DEFINE_string("blurball", "../shared/data/blurball", "The capture that is trained on.")
_ONLY = flags.DEFINE_multi_enum(
    "only", list("12345"), list("12345"), "Which checks to run; may be given several times."
)
_SECONDS = flags.DEFINE_integer("seconds", 780, "Time for all of it.", lower_bound=1)
GSPLAT_SECONDS = 40  # that gsplat may still compile itself after the first check
DEVICE = "import jax; print(jax.devices('gpu')[0].device_kind, 'jax', jax.__version__)"
HEADER = "| check | part | seconds | outcome | last line |\n|---|---|---:|---|---|\n"


class Part(NamedTuple):
    """One process of a check."""

    check: str
    name: str
    seconds: int  # that it may take
    command: str  # of a shell; {python}, {folder}, {made}, {blurball} and {beside} are filled in
    alone: bool = True  # what times nothing runs beside the other parts of its check


# With a line for each test: of tests that are stopped one wants to know how far they came.
TESTS = "BAGS_TEST_PLATFORM=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false {python} -m pytest -v -n 4 -rs --tb=short"
TRAIN = "{python} -m experiments.train --config=configs/"
SMOKE = TRAIN + "procedural.py:motion,smoke --workdir={made}"
EVALUATE = "{python} -m experiments.evaluate --workdir={made}"
RASTERIZER = "{python} -m experiments.benchmarks.rasterizer {beside} --rows={folder}/rasterizer.jsonl"
COST = "{python} -m experiments.benchmarks.cost --output={folder}/cost.jsonl"
STEP = "{python} -m experiments.benchmarks.training_step {beside} --rows={folder}/training_step.jsonl"
BALL = "deblur_nerf.py:blurball --config.data.root={blurball} --workdir={made}/ball"
GARDEN = "garden:648x420,garden:1296x840,garden:1920x1080"
CLOUDS = "100000:1296x840,500000:1296x840,1000000:1296x840,3000000:1296x840"
THERE_AND_BACK = f"rm -rf {{made}}/smoke; {SMOKE}/smoke && JAX_PLATFORMS=cpu {EVALUATE}/smoke && {EVALUATE}/smoke"
CACHED = " --config.compilation_cache={made}/cache"
EVERY_BACKEND = f"{TESTS} tests/test_rasterize.py tests/test_cameras.py tests/test_tiles.py"

PARTS = (
    Part("1", "kernels against the oracle", 130, f"{TESTS} tests/test_cuda.py tests/test_blur_rows.py", alone=False),
    Part("1", "every backend", 130, EVERY_BACKEND, alone=False),
    Part("1", "smoke on the GPU, on the CPU and back", 130, THERE_AND_BACK, alone=False),
    Part("3", "rasterizer, invented", 100, f"{RASTERIZER} --backends=cuda,cuda! --scenes={CLOUDS}"),
    Part("3", "rasterizer, garden", 50, f"{RASTERIZER} --backends=cuda --scenes={GARDEN}"),
    Part("3", "whole steps", 75, f"{STEP} --images=600x400 --counts=20000,100000 --steps=50"),
    Part("2", "parts of a step", 65, f"{COST} --gaussians=100000 --sizes=150x100,300x200,600x400"),
    Part("5", "cold start", 65, f"rm -rf {{made}}/cache {{made}}/cold {{made}}/warm; {SMOKE}/cold{CACHED}"),
    Part("5", "warm start", 25, f"{SMOKE}/warm{CACHED}"),
    Part("4", "blurball 600 x 400", 200, TRAIN + BALL),
    Part("4", "its scores", 30, f"{EVALUATE}/ball"),
)


def start(command: str, log: pathlib.Path) -> subprocess.Popen:
    """Starts a shell's command in a session of its own, so that all that it starts can be stopped with it."""
    with open(log, "w") as file:
        return subprocess.Popen(command, shell=True, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def stop(process: subprocess.Popen) -> None:
    """Stops a process and all that it has started, and waits until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(parts: Sequence[Part], left: float, places: dict[str, str]) -> list[str]:
    """Runs parts at the same time, each with its output in a file of its own.

    Args:
      left: seconds until all have to be done.
      places: what stands for the names in their commands; `beside` is several words, or none.
    Returns:
      what came of each, as a line of the summary's table.
    """
    quoted = {name: value if name == "beside" else shlex.quote(value) for name, value in places.items()}
    logs = [pathlib.Path(places["folder"]) / f"{part.check}_{part.name}.log".replace(" ", "_") for part in parts]
    begun, lines = time.perf_counter(), {}
    processes = [start(part.command.format(**quoted), log) for part, log in zip(parts, logs, strict=True)]
    try:
        while len(lines) < len(parts):
            time.sleep(0.05)
            seconds = time.perf_counter() - begun
            for part, log, process in zip(parts, logs, processes, strict=True):
                late = seconds > min(part.seconds, left)
                if part in lines or (process.poll() is None and not late):
                    continue
                outcome = "stopped" if process.poll() is None else f"exit code {process.returncode}"
                stop(process)
                last = (log.read_text(errors="replace").split("\n") or [""])[-2:]
                said = " ".join(" ".join(last).split("\r")[-1].split()).replace("|", "/") or "nothing printed"
                lines[part] = f"| {part.check} | {part.name} | {seconds:.0f} | {outcome} | `{said[-160:]}` |"
    finally:
        for process in processes:
            stop(process)
    return [lines[part] for part in parts]


def is_ready(gsplat: subprocess.Popen, seconds: float) -> bool:
    """Waits for gsplat's build, and stops it where it takes too long: nothing is timed beside it."""
    try:
        return gsplat.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        stop(gsplat)
        return False


def main() -> None:
    """Runs the checks, the long training last, and writes a line of summary.md after each part."""
    end = time.perf_counter() + _SECONDS.value
    device = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, check=False).stdout.strip()
    if not device:
        raise UserError("JAX sees no GPU here: install the extra [gpu], or look at nvidia-smi")
    folder = pathlib.Path(_FOLDER.value).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    places = {"python": sys.executable, "folder": str(folder), "made": str(folder / "gpu_checks_runs"), "beside": ""}
    places["blurball"] = _BLURBALL.value
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what runs in other sessions is stopped, too
    # gsplat compiles itself at its first import, for minutes, on the CPU: it may begin at once.
    build = "import sys; from gsplat.cuda._backend import _C; print(_C); sys.exit(_C is None)"
    gsplat = start(f"{shlex.quote(sys.executable)} -c {shlex.quote(build)}", folder / "gsplat.log")
    summary = folder / "summary.md"
    if not summary.exists():
        summary.write_text(f"{device}\n\n{HEADER}")
    chosen = [part for part in PARTS if part.check in _ONLY.value]
    bad = 0
    try:
        for name, group in groupby(chosen, key=lambda part: part.name if part.alone else ""):
            if name and gsplat.returncode is None and is_ready(gsplat, GSPLAT_SECONDS):
                places["beside"] = "--beside=gsplat"
            parts, left = list(group), end - time.perf_counter()
            left_out = [f"| {part.check} | {part.name} | | left out | |" for part in parts]
            lines = run(parts, left, places) if left > 1 else left_out
            print(*lines, sep="\n", flush=True)
            with open(summary, "a") as file:
                file.writelines(line + "\n" for line in lines)
            bad += sum("| exit code 0 |" not in line for line in lines)
    finally:
        stop(gsplat)
    if bad:
        raise UserError(f"{bad} of {len(chosen)} parts did not end well: see {summary} and the logs beside it")


if __name__ == "__main__":
    launch(main)
