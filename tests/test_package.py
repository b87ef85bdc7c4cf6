"""The installed package: a wheel has all that the programs need, and every import is declared."""

import ast
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("bags_jax", "configs", "experiments")
SOURCES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*")) if "__pycache__" not in p.parts]

# Where the import has another name than the package on the index.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "absl": "absl-py", "orbax": "orbax-checkpoint"}


def canonical(requirement: str) -> str:
    """The package name of a requirement as the index writes it (PEP 503)."""
    name = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def third_party(nodes) -> set[str]:
    """Names on the package index of the absolute imports among some syntax nodes."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {*PACKAGES}
    return {canonical(DISTRIBUTIONS.get(top, top)) for top in tops}


def build_tool_version() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def test_every_import_is_declared():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    required = {canonical(line) for line in (ROOT / "requirements.txt").read_text().splitlines()}
    optional = {canonical(line) for name in extras if name != "dev" for line in extras[name]}
    for path in [p for p in SOURCES if p.suffix == ".py"]:
        tree = ast.parse(path.read_text())
        missing = third_party(tree.body) - required
        assert not missing, f"{path} imports {missing}: not in requirements.txt"
        missing = third_party(ast.walk(tree)) - required - optional
        assert not missing, f"{path} imports {missing}: in no requirement and no extra"


def test_a_wheel_has_code_tables_and_kernels(tmp_path):
    if build_tool_version() < 77:
        pytest.skip("needs setuptools >= 77 in this environment: pip install -e '.[dev]'")
    for name in ("pyproject.toml", "requirements.txt", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tmp_path)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    done = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        str(p.relative_to(ROOT))
        for p in SOURCES
        if p.suffix in (".py", ".csv", ".ptx", ".cu", ".cuh", ".cc", ".h") or p.name == "py.typed"
    }
    assert needed and not needed - packed
    assert {name.partition("/")[0] for name in packed} == {*PACKAGES, f"bags_jax-{wheel.name.split('-')[1]}.dist-info"}
