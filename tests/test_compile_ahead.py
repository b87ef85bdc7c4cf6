"""The rasterizer and the training step compile for an H200 and a TPU v5e, if the compilers are installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "compile_ahead.py"
TRAFFIC = json.loads((SCRIPT.parent / "golden" / "traffic.json").read_text())
COMPILERS = {"h200": ("jax_cuda13_plugin", "make gpu-check"), "v5e": ("libtpu", "make tpu-check")}


def compile_ahead(machine, *arguments, **environment):
    """Returns the row that the script prints, in its own process: there JAX believes in an accelerator."""
    module, how = COMPILERS[machine]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {module}: cannot compile for {machine} ({how} installs it)")
    command = [sys.executable, str(SCRIPT), machine, *map(str, arguments)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.splitlines()[-1])
    print(row)
    return row


def test_20_million_split_gaussians_compile_for_eight_h200():
    """Each device has an eighth of the state; what it draws has buffers for 8 x 524 288 visible Gaussians."""
    row = compile_ahead("h200", "split", 20_000_000, 1 << 19, 1296, 840, 8)
    assert row["argument_bytes"] < 2e9 and row["temporary_bytes"] < 3e9 and row["waits"] == 0


@pytest.mark.parametrize("cameras, deterministic", [(1, False), (2, True)])
def test_rasterization_compiles_for_an_h200(cameras, deterministic):
    row = compile_ahead("h200", "rasterization", cameras, int(deterministic))
    # count, sum, scan, expand, find, forward, backward and its end; in a fixed order also the sum over slots
    assert row["calls"]["__gpu$xla.gpu.ptx"] == 8 + deterministic
    assert row["waits"] == 0 and row["launches"] <= 70
    # Intersections and their sorted copies, images, gradients; in a fixed order also 40 bytes per intersection.
    assert row["temporary_bytes"] < (1.5e9 if deterministic else 5e8)


@pytest.mark.parametrize(
    "stride, deterministic, devices, launches",
    [(2, False, 1, 204), (2, True, 1, 206), (1, False, 1, 287), (2, False, 4, 297)],
)
def test_training_step_compiles_for_an_h200(stride, deterministic, devices, launches):
    """BAGS at 600 x 400, kernels of 17 x 17, 10^6 Gaussians, under 6 GB; also one kernel per pixel, as published."""
    row = compile_ahead("h200", "step", 600, 400, stride, int(deterministic), devices)
    # The rasterizer, two kernels of seeing and two of SSIM, and three of the blur (one forward, two backward) if its logits fit
    # one block of rows.
    assert row["calls"]["__gpu$xla.gpu.ptx"] == 8 + deterministic + 2 + 2 + 3
    assert row["argument_bytes"] + row["temporary_bytes"] + row["output_bytes"] < 6e9
    assert row["waits"] == 0 and row["launches"] <= launches
    assert (row["exchanges"] > 0) == (devices > 1)


@pytest.mark.parametrize("name", TRAFFIC)
def test_launches_and_bytes_of_a_step_stay_in_their_band(name):
    """They are within 3 percent of golden/traffic.json. After an intended change, update that file and docs/benchmarks.md."""
    golden = TRAFFIC[name]
    row = compile_ahead("h200", "step", *golden["arguments"])
    for count in ("launches", "moved_bytes"):
        assert 0.97 * golden[count] <= row[count] <= 1.03 * golden[count], (count, row[count], golden[count])
    assert row["temporary_bytes"] <= 1.03 * golden["temporary_bytes"]


@pytest.mark.parametrize("devices", [1, 4])
def test_training_step_compiles_for_a_tpu(devices):
    """The same step on one and on four chips of a TPU v5e, which have 16 GB each."""
    row = compile_ahead("v5e", "step", 600, 400, 2, 0, devices)
    assert row["argument_bytes"] + row["temporary_bytes"] + row["output_bytes"] < 6e9
    assert (row["exchanges"] > 0) == (devices > 1)
    assert row["calls"]["tpu_custom_call"] == 2  # forward and backward


def test_rasterization_compiles_for_a_tpu():
    """At another default precision of matrix products."""
    row = compile_ahead("v5e", "rasterization", 1, 0, JAX_DEFAULT_MATMUL_PRECISION="high")
    assert row["calls"]["tpu_custom_call"] == 2 and row["temporary_bytes"] < 2e9


@pytest.mark.parametrize("machine, limit", [("h200", 1e9), ("v5e", 6e9)])
def test_operations_between_steps_compile(machine, limit):
    """Density control, filters, counts and images. A TPU stores (N, 15, 3) in blocks of 8 x 128."""
    assert compile_ahead(machine, "between")["temporary_bytes"] < limit
