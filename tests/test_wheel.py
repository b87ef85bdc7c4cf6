"""The wheel: its files, and the commands of an installed package far from the clone."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = (
    "--config=procedural:motion,smoke",
    "--config.num_devices=1",
    "--config.num_steps=4",
    "--config.max_gaussians=512",
)


def setuptools_version() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


pytestmark = pytest.mark.skipif(setuptools_version() < 77, reason="needs setuptools >= 77: pip install -e '.[dev]'")


def pip(*arguments, cwd=None):
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy, because the build leaves a folder build/ behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("bags_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-build-isolation", f"--wheel-dir={folder}", ".", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """A fresh virtual environment with the wheel. It finds the dependencies in the environment of the tests.

    A path in a .pth file is searched for modules, but its own .pth files are not read: an editable install there has no effect.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    pip("--python", str(folder / "bin" / "python"), "install", str(wheel))
    return folder / "bin"


def call(installed, folder, program, *arguments):
    """Runs a program of the environment in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed / program, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def succeed(*arguments):
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_one_package_with_configurations_and_kernels(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [p for p in (ROOT / "bags_jax").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    needed = {str(p.relative_to(ROOT)) for p in files}
    assert {p.suffix for p in files} >= {".py", ".csv", ".ptx", ".cu", ".cuh", ".cc", ".h"}
    assert "bags_jax/py.typed" in needed
    needed |= {f"bags_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    assert len(needed) > 100 and not needed - packed
    assert {name.partition("/")[0] for name in packed} == {"bags_jax", f"bags_jax-{wheel.name.split('-')[1]}.dist-info"}


def test_the_wheel_has_the_version_of_the_source(wheel):
    (line,) = [line for line in (ROOT / "bags_jax" / "__init__.py").read_text().splitlines() if "__version__ =" in line]
    assert wheel.name.split("-")[1] == line.split('"')[1]


def test_an_installed_package_works_without_the_clone(installed, tmp_path):
    where = "import importlib.util; print(importlib.util.find_spec('bags_jax').origin)"
    assert pathlib.Path(succeed(installed, tmp_path, "python", "-c", where).strip()).is_relative_to(installed.parent)
    assert succeed(installed, tmp_path, "bags-jax", "--version").startswith("bags-jax ")

    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    succeed(installed, tmp_path, "bags-jax", "train", *SMOKE, f"--config.compilation_cache={cache}", "--workdir=run")
    succeed(installed, tmp_path, "bags-jax", "evaluate", "--workdir=run", f"--compilation_cache={cache}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["step"] == 4 and results["deblur_nerf"]["PSNR"] > 0
    said = succeed(installed, tmp_path, "bags-jax", "export", "--workdir=run", "--output=scene.ply")
    assert "Gaussians of step 4" in said and (tmp_path / "scene.ply").read_bytes().startswith(b"ply\n")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "scene.ply"}

    refused = call(installed, tmp_path, "bags-jax", "train", "--config=costom", "--workdir=other")
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2 and line.startswith("error: --config=costom")
    assert "base, custom, deblur_nerf, exblurf, mip360_mixed, procedural, realx3d" in line
    assert not (tmp_path / "other").exists()
