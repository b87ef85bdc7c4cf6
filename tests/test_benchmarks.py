"""The benchmark of the rasterizer runs on a small scene; the checks for a GPU fit into their time and stop in time."""

import json
import os
import pathlib
import subprocess
import sys
import time
from itertools import groupby

import pytest

from experiments.benchmarks import gpu_checks
from experiments.benchmarks.gpu_checks import PARTS

ROOT = pathlib.Path(__file__).parents[1]


def call(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.benchmarks.rasterizer", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_rows_of_the_rasterizer(tmp_path):
    rows = tmp_path / "rows.jsonl"
    done = call("--scenes=200:64x48", "--backends=xla", "--timed=15", "--warm_up=2", f"--rows={rows}")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, rows.read_text().splitlines())
    assert row["backend"] == "xla" and row["gaussians"] == 200 and row["intersections"] > 200
    assert row["forward_ms"] > 0 and row["both_ms"] > 0


@pytest.mark.parametrize(
    "scenes, said", [("many:64x48", "'many:64x48'"), ("200", "WIDTHxHEIGHT"), ("garden:9x9", "no no/x.npz")]
)
def test_invalid_scenes_raise_errors(scenes, said):
    done = call(f"--scenes={scenes}", "--garden=no/x.npz", "--backends=xla")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_checks_fit_into_their_time():
    """The documented limit is 13 minutes; parts that do not fit are left out."""
    groups = groupby(PARTS, key=lambda part: part.name if part.alone else "")  # as main() runs them
    seconds = sum(max(part.seconds for part in group) for _, group in groups)
    assert seconds + gpu_checks.GSPLAT_SECONDS <= gpu_checks._SECONDS.default <= 13 * 60


def test_every_check_can_be_chosen():
    assert {part.check for part in PARTS} == set(gpu_checks._ONLY.default)


# Imports all modules in one process. Removes the flags of each: some flags have the same name in several modules.
IMPORT = """
import importlib, sys
from absl import flags
for module in sys.argv[1:]:
    before = set(flags.FLAGS)
    importlib.import_module(module)
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
"""


def test_files_and_modules_of_the_checks_exist():
    words = {word for part in PARTS for word in part.command.split()}
    files = [word for word in words if word.startswith("tests/")]
    assert files and all((ROOT / file).is_file() for file in files)
    modules = sorted(word for word in words if word.startswith("experiments."))
    command = [sys.executable, "-c", IMPORT, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert modules and done.returncode == 0, done.stderr


def test_parts_of_the_checks(tmp_path):
    places = {"python": sys.executable, "folder": str(tmp_path), "blurball": "it's here", "beside": ""}
    commands = {
        "fails": "echo {python} && false",
        "hangs": "sleep 30; echo late",
        "quotes": "echo {blurball}; echo 'a | b'",
        "is killed with its children": f"(sleep 4; touch {tmp_path}/alive) & wait",
    }
    parts = [gpu_checks.Part("1", name, 1, command) for name, command in commands.items()]
    begun = time.perf_counter()
    lines = gpu_checks.run(parts, 10.0, places)
    assert time.perf_counter() - begun < 4  # at the same time
    expected = [("exit code 1", sys.executable), ("stopped", "nothing printed"), ("exit code 0", "a / b")]
    for line, (outcome, said) in zip(lines[:3], expected, strict=True):
        assert f"| {outcome} | `{said}` |" in line
    assert (tmp_path / "1_quotes.log").read_text() == "it's here\na | b\n"
    time.sleep(4.5)
    assert not (tmp_path / "alive").exists()


@pytest.mark.parametrize(
    "argument, said", [("--only=6", "one of <1|2|3|4|5>"), ("--seconds=5", "JAX sees no GPU here")]
)
def test_checks_that_cannot_start(tmp_path, argument, said):
    command = [sys.executable, "-m", "experiments.benchmarks.gpu_checks", f"--folder={tmp_path}/new", argument]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "new").exists()
