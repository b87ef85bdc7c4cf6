"""The settings of a run beside the defaults, and the software that evaluates it."""

import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import Any

from bags_jax import settings as known
from bags_jax.settings import Settings

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
GIT_SECONDS = 5  # to wait for git


def list_settings(settings: Settings) -> list[dict[str, Any]]:
    """Every setting: name, value, default, meaning with its unit, and whether the value differs from the default."""
    found = []
    for name, default, rule in known.rows():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        meaning = f"{rule.meaning} [{rule.unit}]" if rule.unit else rule.meaning
        row = {"name": name, "value": format_value(value), "default": format_value(default), "meaning": meaning}
        found.append({**row, "changed": value != default})
    return found


def format_value(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(format_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else "empty"


def list_software() -> list[tuple[str, str]]:
    """Name and version of this package and of the ones that decide its numbers."""
    versions = {name: _version(name) for name in ("bags-jax", *PACKAGES)}
    if commit := find_commit():
        versions["bags-jax"] += f", commit {commit}"
    python = f"{platform.python_version()}, {sys.platform} {platform.machine()}"
    return [*versions.items(), ("Python", python)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
        return "unknown"


def find_commit() -> str | None:
    """The git commit of this package, with "+" where its files were changed since; None: not in a repository of its own."""
    folder = pathlib.Path(__file__).parents[1]
    if (
        _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None
    ):  # a repository that does not hold the package
        return None
    commit = _git(folder, "rev-parse", "--short", "HEAD")
    return commit and commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no", ".") else "")


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    """The output of a git command; None: it fails, or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def format_seconds(seconds: float | None) -> str:
    """A duration as "41 s", "12.3 min" or "3.4 h"; "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
