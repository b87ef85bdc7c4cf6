"""The checks that need a GPU, in 13 minutes of its time; every table is written as soon as it is known.

  python -m experiments.benchmarks.gpu_checks --folder=gpu_checks --blurball=../shared/data/blurball

1 it runs (tests, a :smoke training, its checkpoint on the CPU and back)   2 where the time goes   3 beside gsplat
4 training on blurball   5 compilation, cold and warm. Each part is a process of its own with a time of its own, so that
what hangs or fails takes nothing else with it. --only=3,5 runs some of them, --seconds=500 all that fit.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from absl import flags

from experiments.launch import launch

_FOLDER = flags.DEFINE_string("folder", "gpu_checks", "Where logs, rows and summary.md are written.")
_BLURBALL = flags.DEFINE_string("blurball", "../shared/data/blurball", "The capture that is trained on.")
_ONLY = flags.DEFINE_list("only", "1,2,3,4,5", "Which checks to run.")
_SECONDS = flags.DEFINE_integer("seconds", 780, "What has not begun or ended by then is left out, and said to be.", 1)


class Part(NamedTuple):
    """One process of a check."""

    check: str
    name: str
    seconds: int  # that it may take
    command: str  # of a shell; {python}, {folder}, {blurball} and {beside} are filled in
    alone: bool = True  # what times nothing runs beside the other parts of its check


# With a line for each test: of tests that are stopped one wants to know how far they came. Half of the memory between two.
TESTS = "BAGS_TEST_PLATFORM=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false {python} -m pytest -v -n 4 -rs --tb=short"
TRAIN = "{python} -m experiments.train --config=configs/"
SMOKE = TRAIN + "procedural.py:motion,smoke --workdir={folder}"
EVALUATE = "{python} -m experiments.evaluate --workdir={folder}"
RASTERIZER = "{python} -m experiments.benchmarks.rasterizer {beside} --rows={folder}/rasterizer.jsonl"
COST = "{python} -m experiments.benchmarks.cost"
STEP = "{python} -m experiments.benchmarks.training_step"
GARDEN = "garden:648x420,garden:1296x840,garden:1920x1080"
CLOUDS = "100000:1296x840,500000:1296x840,1000000:1296x840,3000000:1296x840"
THERE_AND_BACK = f"{SMOKE}/smoke && JAX_PLATFORMS=cpu {EVALUATE}/smoke && {EVALUATE}/smoke"
CACHED = " --config.compilation_cache={folder}/cache"

PARTS = (
    Part("1", "kernels against the oracle", 150, f"{TESTS} tests/test_cuda.py", alone=False),
    Part(
        "1", "every backend", 150, f"{TESTS} tests/test_rasterize.py tests/test_cameras.py tests/test_tiles.py", False
    ),
    Part("1", "smoke on the GPU, on the CPU and back", 150, THERE_AND_BACK, alone=False),
    Part("2", "parts of a step", 80, f"{COST} --gaussians=100000 --sizes=150x100,300x200,600x400"),
    Part("3", "rasterizer, invented", 120, f"{RASTERIZER} --backends=cuda,cuda! --scenes={CLOUDS}"),
    Part("3", "rasterizer, garden", 60, f"{RASTERIZER} --backends=cuda --scenes={GARDEN}"),
    Part("3", "whole steps", 40, f"{STEP} {{beside}} --images=600x400 --counts=20000,100000 --steps=50"),
    Part("5", "cold start", 50, f"{SMOKE}/cold{CACHED}"),
    Part("5", "warm start", 30, f"{SMOKE}/warm{CACHED}"),
    Part(
        "4",
        "blurball 600 x 400",
        220,
        TRAIN + "deblur_nerf.py:blurball --config.data.root={blurball} --workdir={folder}/ball",
    ),
    Part("4", "its scores", 30, f"{EVALUATE}/ball"),
)


def run(part: Part, seconds: float, places: dict[str, str]) -> str:
    """Runs a part with its output in a file of its own; what came of it, in a line of the summary's table."""
    log = pathlib.Path(places["folder"]) / f"{part.check} {part.name}.log".replace(" ", "_").replace(",", "")
    quoted = {name: value if name == "beside" else shlex.quote(value) for name, value in places.items()}
    start = time.perf_counter()
    with open(log, "w") as file:
        # In a session of its own: what a shell has started is stopped with it.
        process = subprocess.Popen(
            part.command.format(**quoted), shell=True, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            outcome = f"exit code {code}" if (code := process.wait(seconds)) else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            outcome = f"stopped after {seconds:.0f} s"
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing printed"]
    return f"| {part.check} | {part.name} | {time.perf_counter() - start:.0f} | {outcome} | `{lines[-1][:160]}` |"


def build_gsplat(log: pathlib.Path) -> subprocess.Popen:
    """Begins what gsplat does at its first import: it compiles itself, for minutes, on the CPU."""
    code = "import sys; from gsplat.cuda._backend import _C; print(_C); sys.exit(_C is None)"
    with open(log, "w") as file:
        return subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=subprocess.STDOUT)


def is_ready(build: subprocess.Popen, seconds: float) -> bool:
    """Waits for gsplat: whether it can be timed. Where it is missing, or takes too long, ours is timed alone."""
    try:
        return build.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False


def main() -> None:
    """Runs the checks, the long training last, and writes a line of summary.md after each part."""
    end = time.perf_counter() + _SECONDS.value
    left = lambda: max(end - time.perf_counter(), 0.0)
    folder = pathlib.Path(_FOLDER.value).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    places = {"python": sys.executable, "folder": str(folder), "blurball": _BLURBALL.value, "beside": ""}
    build = build_gsplat(folder / "gsplat.log")
    summary = folder / "summary.md"
    summary.write_text("| check | part | seconds | outcome | last line |\n|---|---|---:|---|---|\n")
    chosen = [part for part in PARTS if part.check in _ONLY.value]
    for _, group in groupby(chosen, key=lambda part: part.name if part.alone else part.check):
        parts = list(group)
        if parts[0].check == "3" and not places["beside"] and is_ready(build, min(60.0, left() / 4)):
            places["beside"] = "--beside=gsplat"
        with ThreadPoolExecutor(len(parts)) as pool:
            lines = list(pool.map(lambda part: run(part, min(part.seconds, left()), places), parts))
        print(*lines, sep="\n", flush=True)
        with open(summary, "a") as file:
            file.writelines(line + "\n" for line in lines)
    build.terminate()


if __name__ == "__main__":
    launch(main)
