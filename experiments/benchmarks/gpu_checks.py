"""Runs the checks that need a GPU, each with a time limit, 13 minutes in all.

  python -m experiments.benchmarks.gpu_checks --only=1 --only=2 --only=3
  python -m experiments.benchmarks.gpu_checks --only=4 --only=5 --blurball=../shared/data/blurball

Prints one table row per part, and appends the row to summary.md as soon as the part ends. The checks are:
1 tests, and a :smoke training whose checkpoint is evaluated on the CPU and the GPU   2 times of the parts of a step
3 times beside gsplat   4 training on blurball   5 compilation, cold and warm
Each part is a process with its own time limit, so a part that hangs or fails does not affect the others. Parts that do
not fit into --seconds are left out; the table says so.
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

_FOLDER = flags.DEFINE_string("folder", "gpu_checks", "Folder for logs, rows and summary.md.")
_BLURBALL = flags.DEFINE_string("blurball", "../shared/data/blurball", "Folder of the capture for check 4.")
_ONLY = flags.DEFINE_multi_enum(
    "only", list("12345"), list("12345"), "Which checks to run; may be given several times."
)
_SECONDS = flags.DEFINE_integer("seconds", 780, "Time limit for all checks.", lower_bound=1)
GSPLAT_SECONDS = 40  # longest wait for gsplat's compilation after the first check
DEVICE = "import jax; print(jax.devices('gpu')[0].device_kind, 'jax', jax.__version__)"
HEADER = "| check | part | seconds | outcome | last line |\n|---|---|---:|---|---|\n"


class Part(NamedTuple):
    """One process of a check."""

    check: str
    name: str
    seconds: int  # time limit
    command: str  # shell command with the fields {python}, {folder}, {runs}, {blurball} and {beside}
    alone: bool = True  # False: measures no time, and runs at the same time as its neighbours in PARTS


# -v prints a line per test: the log of a stopped part shows which tests have passed.
TESTS = "BAGS_TEST_PLATFORM=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false {python} -m pytest -v -n 4 -rs --tb=short"
TRAIN = "{python} -m experiments.train --config=configs/"
SMOKE = TRAIN + "procedural.py:motion,smoke --workdir={runs}"
EVALUATE = "{python} -m experiments.evaluate --workdir={runs}"
RASTERIZER = "{python} -m experiments.benchmarks.rasterizer {beside} --rows={folder}/rasterizer.jsonl"
COST = "{python} -m experiments.benchmarks.cost --rows={folder}/cost.jsonl"
STEP = "{python} -m experiments.benchmarks.training_step {beside} --rows={folder}/training_step.jsonl"
BALL = "deblur_nerf.py:blurball --config.data.root={blurball} --workdir={runs}/ball"
GARDEN = "garden:648x420,garden:1296x840,garden:1920x1080"
CLOUDS = "100000:1296x840,500000:1296x840,1000000:1296x840,3000000:1296x840"
EVALUATE_TWICE = f"rm -rf {{runs}}/smoke; {SMOKE}/smoke && JAX_PLATFORMS=cpu {EVALUATE}/smoke && {EVALUATE}/smoke"
CACHED = " --config.compilation_cache={runs}/cache"
EVERY_BACKEND = f"{TESTS} tests/test_rasterize.py tests/test_splatting.py tests/test_tiles.py"
KERNELS = "tests/test_cuda.py tests/test_blur_rows.py tests/test_see.py tests/test_ssim.py"

PARTS = (
    Part("1", "kernels against the oracle", 130, f"{TESTS} {KERNELS}", alone=False),
    Part("1", "every backend", 130, EVERY_BACKEND, alone=False),
    Part("1", "smoke on the GPU, on the CPU and back", 130, EVALUATE_TWICE, alone=False),
    Part("3", "rasterizer, random scenes", 100, f"{RASTERIZER} --backends=cuda,cuda! --scenes={CLOUDS}"),
    Part("3", "rasterizer, garden", 50, f"{RASTERIZER} --backends=cuda --scenes={GARDEN}"),
    Part("3", "whole steps", 75, f"{STEP} --images=600x400 --counts=20000,100000 --steps=50"),
    Part("2", "parts of a step", 65, f"{COST} --gaussians=100000 --sizes=150x100,300x200,600x400"),
    Part("5", "cold start", 65, f"rm -rf {{runs}}/cache {{runs}}/cold {{runs}}/warm; {SMOKE}/cold{CACHED}"),
    Part("5", "warm start", 25, f"{SMOKE}/warm{CACHED}"),
    Part("4", "blurball 600 x 400", 200, TRAIN + BALL),
    Part("4", "its scores", 30, f"{EVALUATE}/ball"),
)


def start(command: str, log: pathlib.Path) -> subprocess.Popen:
    """Starts a shell command in its own process group, so that `stop` reaches all its children."""
    with open(log, "w") as file:
        return subprocess.Popen(command, shell=True, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def stop(process: subprocess.Popen) -> None:
    """Kills a process and its children, and waits for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(parts: Sequence[Part], left: float, places: dict[str, str]) -> list[str]:
    """Runs parts at the same time, each with its own log file.

    Args:
      parts: the parts.
      left: seconds until all parts are stopped.
      places: values of the fields in the commands, quoted for the shell; `beside` may be several words or none.
    Returns:
      one row of the summary's table per part.
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
    """Waits for gsplat's compilation; stops it after `seconds`, so that it does not disturb the timings."""
    try:
        return gsplat.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        stop(gsplat)
        return False


def main() -> None:
    """Runs the checks in the order of PARTS and writes a row of summary.md after each."""
    end = time.perf_counter() + _SECONDS.value
    device = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, check=False).stdout.strip()
    if not device:
        raise UserError("JAX sees no GPU here: install the extra [gpu], or check nvidia-smi")
    folder = pathlib.Path(_FOLDER.value).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    places = {"python": sys.executable, "folder": str(folder), "runs": str(folder / "gpu_checks_runs"), "beside": ""}
    places["blurball"] = _BLURBALL.value
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # runs `finally`: stops the parts
    # gsplat compiles itself at its first import, for minutes, on the CPU: start now.
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
