"""Runs `make demo` in smoke size."""

import json
import os
import subprocess
import sys

import pytest
import trimesh


@pytest.mark.slow
def test_demo_writes_its_files_and_prints_its_scores(tmp_path):
    command = [sys.executable, "-m", "experiments.demo", "--smoke", f"--workdir={tmp_path}"]
    as_users_compile = {**os.environ, "XLA_FLAGS": ""}
    run = subprocess.run(command, env=as_users_compile, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"plain", "bags"}
    for scores in results.values():
        assert scores["step"] == 12
        assert set(scores["deblur_nerf"]) == set(scores["gaussian_splatting"]) == {"PSNR", "SSIM", "LPIPS"}
    assert (tmp_path / "before_after.png").stat().st_size > 1000
    assert len(trimesh.load(tmp_path / "scene.ply").vertices) == results["bags"]["num_gaussians"]
    for line in ("photo blur", "plain splatting", "BAGS", "ahead of plain splatting", "antialiased", "classic"):
        assert line in run.stdout, run.stdout
