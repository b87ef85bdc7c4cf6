"""docs/extending_backend.md: the code of the page works, as it is printed there, on a copy of the package."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from bags_jax.ops.backends import choose

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending_backend.md").read_text()


def read_blocks(language):
    """Returns (caption, text) of the code blocks of the page in one language."""
    return re.findall(rf"```\{{code-block\}} {language}\n:caption: `?(.*?)`?\n\n(.*?)```", PAGE, flags=re.DOTALL)


def apply_diff(folder, path, diff):
    """Replaces each run of lines with a minus, which must be in the file once, by the lines with a plus below it."""
    text = (folder / path).read_text()
    for removed, added in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, flags=re.MULTILINE):
        old, new = (re.sub(r"^.", "", lines, flags=re.MULTILINE) for lines in (removed, added))
        assert text.count(old) == 1, f"{path} has the line {text.count(old)} times: {old}"
        text = text.replace(old, new)
    (folder / path).write_text(text)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the package and its tests, changed as the page says."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("bags_jax", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    blocks = dict(read_blocks("python"))
    (folder / "bags_jax/ops/rasterize/scan.py").write_text(blocks.pop("bags_jax/ops/rasterize/scan.py"))
    (folder / "script.py").write_text(blocks["In a script"])
    for path, diff in read_blocks("diff"):
        apply_diff(folder, path, diff)
    return folder


def run_python(folder, *arguments):
    """Runs Python in a folder, with the package that is there."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    output = {"capture_output": True, "text": True}
    return subprocess.run([sys.executable, *arguments], check=False, cwd=folder, env=environment, **output)


def test_result_is_the_output_on_the_page(clone):
    if choose("rasterize") != "cpu":
        pytest.skip("no C++ compiler: the page shows a machine with one")
    (output,) = [text for caption, text in read_blocks("text") if caption == "Its output on a CPU"]
    finished = run_python(clone, "script.py")
    assert finished.stdout == output, finished.stderr


def test_tests_hold_it_to_the_oracle(clone):
    options = ("-q", "-n0", "-p", "no:cacheprovider", "-k", "scan and one_gaussian_equals_oracle")
    finished = run_python(clone, "-m", "pytest", *options, "tests/test_rasterize.py")
    assert finished.returncode == 0 and "1 passed" in finished.stdout, finished.stdout + finished.stderr
