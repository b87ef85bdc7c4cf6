"""docs/extending_loss_term.md: the patches of the page add a term to a copy of the package, which trains with it."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending_loss_term.md").read_text()


def read_block(caption):
    """Returns the text of a code block of the page."""
    (text,) = re.findall(rf"```\{{code-block\}} \w+\n:caption: {re.escape(caption)}\n\n(.*?)```", PAGE, flags=re.DOTALL)
    return text


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the package and its configurations with the two patches of the page."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("bags_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.patch", "losses.patch"):
        subprocess.run(["git", "apply", "-"], input=read_block(name), cwd=folder, text=True, check=True)
    return folder


def call(clone, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=clone, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def workdir(clone):
    """The run of the page's command."""
    command, *arguments = shlex.split(read_block("In a terminal"))
    assert command == "bags-jax"
    done = call(clone, "-m", "bags_jax", *arguments)
    assert done.returncode == 0, done.stderr
    return clone / "runs" / "l2"


def test_runs_from_before_the_term_go_on(clone, workdir, tmp_path):
    run = json.loads((workdir / "config.json").read_text())
    del run["loss"]["l2"]
    (tmp_path / "config.json").write_text(json.dumps(run))
    code = f"from bags_jax.workdir import read_settings; print(read_settings({str(tmp_path)!r}).loss.l2)"
    done = call(clone, "-c", code)
    assert done.stdout.strip() == "0.0", done.stderr


def test_term_is_logged_and_weighted(workdir):
    loss = json.loads((workdir / "config.json").read_text())["loss"]
    assert loss["l2"] == 0.5
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    weights = {**loss, "l1": 1 - loss["ssim"], "dssim": loss["ssim"]}
    for row in rows:
        terms = {name.removeprefix("train/"): value for name, value in row.items() if name.startswith("train/")}
        total = terms.pop("total")
        assert terms["l2"] > 0
        expected = sum(weights[name] * value for name, value in terms.items() if name in weights)
        np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_term_is_on_no_list_by_hand(clone):
    """The help, the range check and the published settings find it by themselves."""
    help_text = " ".join(call(clone, "-m", "bags_jax", "train", "--help").stdout.split())
    assert " loss.l2 0.0 Weight of the mean squared error. [at least 0] " in help_text
    flags = ("--config=procedural:motion,smoke", "--config.loss.l2=-1", "--workdir=runs/bad")
    done = call(clone, "-m", "bags_jax", "train", *flags)
    assert done.returncode == 2 and "config.loss.l2 is -1.0, expected at least 0" in done.stderr, done.stderr
    assert not (clone / "runs" / "bad").exists()
    code = """
from bags_jax import published
from bags_jax.config import default_config
config = default_config()
config.loss.l2 = 0.5
print(published.at_equal_steps(config).loss.l2)
"""
    assert call(clone, "-c", code).stdout == "0.0\n"
