"""Puts configs/ into the package, as bags_jax/configs, and README into the metadata; all other metadata is in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup


def describe() -> str:
    """README without its relative pictures and links, which a package index cannot show."""
    text = pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^\]]*\]\((?!https:)[^)]*\)\n+", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\((?!https:)[^)]*\)", r"\1", text)


setup(
    long_description=describe(),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["bags_jax", "bags_jax.*"]), "bags_jax.configs"],
    package_dir={"bags_jax.configs": "configs"},
)
