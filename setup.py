"""Puts configs/ into the package, as bags_jax/configs; all other metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bags_jax", "bags_jax.*"]), "bags_jax.configs"],
    package_dir={"bags_jax.configs": "configs"},
)
