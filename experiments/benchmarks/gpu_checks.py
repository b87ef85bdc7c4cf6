"""The checks that need a GPU, in under 25 minutes of its time; every table is written as soon as it is known.

  python -m experiments.benchmarks.gpu_checks --folder=gpu_checks --blurball=../shared/data/blurball

1 it runs (tests, a :smoke training, its checkpoint on the CPU and back)   2 where the time goes   3 beside gsplat
4 training on blurball   5 compilation, cold and warm. Each part is a process of its own with a time of its own, so that
what hangs or fails takes nothing else with it. --only=3,5 runs some of them.
"""

import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from absl import flags

from experiments.launch import launch

_FOLDER = flags.DEFINE_string("folder", "gpu_checks", "Where logs, rows and summary.md are written.")
_BLURBALL = flags.DEFINE_string("blurball", "../shared/data/blurball", "The capture that is trained on.")
_ONLY = flags.DEFINE_list("only", "1,2,3,4,5", "Which checks to run.")
GARDEN = "garden:648x420,garden:1296x840,garden:1920x1080"
CLOUDS = "100000:1296x840,500000:1296x840,1000000:1296x840,3000000:1296x840"


class Part(NamedTuple):
    """One process of a check."""

    check: str
    name: str
    seconds: int  # that it may take
    command: str  # arguments of Python; {folder}, {blurball} and {beside} are filled in
    environment: tuple[tuple[str, str], ...] = ()


TESTS = "-m pytest -v -n 0 -rs --tb=short"  # with a line each: of tests that are stopped one wants to know how far they came
SMOKE = "-m experiments.train --config=configs/procedural.py:motion,smoke --workdir={folder}/smoke"
TRAIN = "-m experiments.train --config=configs/deblur_nerf.py:blurball --config.data.root={blurball}"
RASTERIZER = "-m experiments.benchmarks.rasterizer {beside} --rows={folder}/rasterizer.jsonl"
CPU, ON_GPU = (("JAX_PLATFORMS", "cpu"),), (("BAGS_TEST_PLATFORM", "cuda"),)
CACHED = SMOKE + " --config.compilation_cache={folder}/cache"

PARTS = (
    Part("1", "kernels against the oracle", 180, f"{TESTS} tests/test_cuda.py", ON_GPU),
    Part(
        "1", "every backend", 90, f"{TESTS} tests/test_rasterize.py tests/test_cameras.py tests/test_tiles.py", ON_GPU
    ),
    Part("1", "smoke on the GPU", 60, SMOKE),
    Part("1", "its checkpoint on the CPU", 60, "-m experiments.evaluate --workdir={folder}/smoke", CPU),
    Part("1", "and on the GPU again", 60, "-m experiments.evaluate --workdir={folder}/smoke"),
    Part("3", "rasterizer, invented", 200, f"{RASTERIZER} --backends=cuda,cuda! --scenes={CLOUDS}"),
    Part("3", "rasterizer, garden", 100, f"{RASTERIZER} --backends=cuda --scenes={GARDEN}"),
    Part(
        "2",
        "parts of a step",
        120,
        "-m experiments.benchmarks.cost --gaussians=20000,100000 --sizes=150x100,300x200,600x400",
    ),
    Part(
        "2",
        "whole steps",
        60,
        "-m experiments.benchmarks.training_step --images=600x400 --counts=20000,100000 --steps=100",
    ),
    Part("5", "cold start", 90, CACHED.replace("/smoke", "/cold")),
    Part("5", "warm start", 60, CACHED.replace("/smoke", "/warm")),
    Part("4", "blurball 600 x 400", 360, TRAIN + " --workdir={folder}/ball"),
    Part("4", "its scores", 60, "-m experiments.evaluate --workdir={folder}/ball"),
)


def run(part: Part, folder: pathlib.Path, beside: str) -> str:
    """Runs a part with its output in a file of its own; what came of it, in a few words."""
    places = {"folder": str(folder), "blurball": _BLURBALL.value, "beside": beside}
    words = part.command.format(**places).split()
    environment = {**os.environ, **{name: value.format(**places) for name, value in part.environment}}
    log = folder / f"{part.check} {part.name}.log".replace(" ", "_").replace(",", "")
    with open(log, "w") as file:
        try:
            done = subprocess.run(
                [sys.executable, *words],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=part.seconds,
                check=False,
            )
            outcome = "ok" if done.returncode == 0 else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {part.seconds} s"
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing printed"]
    return f"{outcome} | `{lines[-1][:160]}`"


def main() -> None:
    """Runs the checks, longest trainings last, and writes a line of summary.md after each part."""
    folder = pathlib.Path(_FOLDER.value).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # gsplat compiles itself at its first import, for minutes, on the CPU: it may begin at once.
    with open(folder / "gsplat.log", "w") as file:
        build = subprocess.Popen(
            [sys.executable, "-c", "import sys; from gsplat.cuda._backend import _C; print(_C); sys.exit(_C is None)"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    summary = folder / "summary.md"
    summary.write_text("| check | part | seconds | outcome | last line |\n|---|---|---:|---|---|\n")
    for part in PARTS:
        if part.check not in _ONLY.value:
            continue
        # Without gsplat, or where it cannot be built, ours is timed alone.
        beside = "--beside=gsplat" if part.check == "3" and build.wait() == 0 else ""
        start = time.perf_counter()
        outcome = run(part, folder, beside)
        line = f"| {part.check} | {part.name} | {time.perf_counter() - start:.0f} | {outcome} |"
        print(line, flush=True)
        with open(summary, "a") as file:
            file.write(line + "\n")
    build.terminate()


if __name__ == "__main__":
    launch(main)
