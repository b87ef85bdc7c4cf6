"""The benchmarks of the rasterizer: that they run, on the CPU and small, and that the checks on a GPU fit their time."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks.gpu_checks import PARTS

ROOT = pathlib.Path(__file__).parents[1]


def call(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.benchmarks.rasterizer", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_rows_of_the_rasterizer(tmp_path):
    rows = tmp_path / "rows.jsonl"
    done = call("--scenes=200:64x48", "--backends=xla", "--timed=1", "--warm_up=1", f"--rows={rows}")
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, rows.read_text().splitlines())
    assert row["backend"] == "xla" and row["gaussians"] == 200 and row["pairs"] > 200
    assert 0 < row["forward_ms"] < row["both_ms"]


@pytest.mark.parametrize(
    "scenes, said", [("many:64x48", "'many:64x48'"), ("200", "WIDTHxHEIGHT"), ("garden:9x9", "no no/x.npz")]
)
def test_mistaken_scenes(scenes, said):
    done = call(f"--scenes={scenes}", "--garden=no/x.npz", "--backends=xla")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_checks_fit_into_25_minutes():
    assert sum(part.seconds for part in PARTS) <= 25 * 60
    assert {part.check for part in PARTS} == set("12345")
    modules = {part.command.split()[1] for part in PARTS} - {"pytest"}
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)
