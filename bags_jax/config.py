"""ml_collections configs from the settings and back: what configs/*.py and the command line work with."""

import dataclasses
import math
import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict

from bags_jax.errors import UserError, show
from bags_jax.settings import Rule, Settings, rule_of

PACKAGE = pathlib.Path(__file__).parent


def default_config() -> Any:
    """The ConfigDict of all settings with their defaults. (Any: no type checker knows the fields of a ConfigDict.)"""
    return ConfigDict(dataclasses.asdict(Settings()))


def read_config(config: Any) -> Settings:
    """The settings of a ConfigDict, checked one by one.

    Raises:
      UserError: a setting that does not exist, is missing, or has a value of another type or out of its range.
    """
    return _read_group(config.to_dict() if isinstance(config, ConfigDict) else config, Settings, "")


def _read_group(values: Any, group: Any, prefix: str) -> Any:
    fields = dataclasses.fields(group)
    if not isinstance(values, dict):
        raise UserError(f"config.{prefix.rstrip('.')} is {show(values)}, expected a group of settings")
    if unknown := sorted(values.keys() - {field.name for field in fields}):
        raise UserError(
            f"the configuration has no field {prefix}{unknown[0]}: bags-jax train --help lists all settings"
        )
    read = {}
    for field in fields:
        name = f"{prefix}{field.name}"
        is_group = dataclasses.is_dataclass(field.default)
        older = None if is_group else rule_of(field).older
        value = values.get(field.name, older)
        if field.name not in values and older is None:
            raise UserError(f"config.{name} is missing: start from bags_jax.config.default_config()")
        if is_group:
            read[field.name] = _read_group(value, type(field.default), f"{name}.")
        else:
            read[field.name] = _read_value(name, value, field.type, rule_of(field))
    return group(**read)


def _read_value(name: str, value: Any, kind: Any, rule: Rule) -> Any:
    if kind in (tuple[int, ...], tuple[float, ...]):
        whole = kind == tuple[int, ...]
        items = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(_is_number(item, whole) for item in items):
            expected = "whole numbers" if whole else "numbers"
            raise UserError(f"config.{name} is {show(items)}, expected {expected}, with commas between them")
        value = tuple(item if whole else float(item) for item in items)
    elif kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float) or _is_huge(value):
            raise UserError(f"config.{name} is {show(value)}, expected a {'whole ' if kind is int else ''}number")
        items = (value,)
    elif not isinstance(value, kind):
        expected = "True or False" if kind is bool else "text"
        raise UserError(f"config.{name} is {show(value)}, expected {expected}")
    else:
        items = (value,)
    if not all(rule.allows(item) for item in items):
        raise UserError(f"config.{name} is {value}, expected {rule.expected}: {rule.meaning}")
    return value


def _is_number(value: Any, whole: bool) -> bool:
    kinds = int if whole else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and not _is_huge(value) and math.isfinite(value)


def _is_huge(value: float) -> bool:
    """True for a whole number that no array holds."""
    return isinstance(value, int) and abs(value) >= 1 << 63


def words_of(arg: str, *known: str) -> list[str]:
    """The words of a configuration's argument, `--config=FILE.py:word,word`.

    Raises:
      ValueError: an unknown word; ignoring it would train something else than was meant.
    """
    words = [word for word in arg.split(",") if word]
    for word in words:
        if word not in known:
            raise ValueError(f"the word {word!r} came after the configuration file, expected {' or '.join(known)}")
    return words


def smoke(config: Any) -> Any:
    """Shrinks a configuration to seconds on a CPU: all parts run, nothing is learned."""
    config.num_steps = 12
    config.max_gaussians = 4096
    config.init.num_random = 256
    config.stages.scales = (0.5, 1.0)
    config.stages.stops = (0.5, 1.0)
    config.stages.restart = 0.5 if config.stages.restart else 0.0
    config.blur.kernel_sizes = (3, 5)
    config.blur.strides = (1, 2)
    config.blur.width, config.blur.conv_width, config.blur.feature_width = 8, 4, 4
    config.blur.embedding_width = 4
    config.density.every = 4
    config.density.min_opacity = config.density.min_opacity_early = (
        0.005  # the first Gaussians may have no more than 0.1
    )
    config.log_every = 2
    config.checkpoint_every = 6
    config.pictures = False  # their programs take longer to compile than the steps take
    return config


def config_folder() -> pathlib.Path:
    """The folder of the shipped configuration files: inside an installed package, or configs/ in a clone."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, pathlib.Path]:
    """The shipped configuration files by name."""
    files = sorted(config_folder().glob("*.py"))
    return {file.stem: file for file in files if not file.stem.startswith("_")}


def find_config(name: str) -> pathlib.Path:
    """The file of a configuration: a shipped one by its name, any other by its path.

    Raises:
      UserError: neither a shipped configuration nor a file.
    """
    shipped, path = shipped_configs(), pathlib.Path(name).expanduser()
    if name not in shipped and not path.is_file():
        raise UserError(
            f"--config={name} came, expected a shipped configuration ({', '.join(shipped)}) or the path of a Python file"
        )
    return shipped.get(name, path)


def load_config(name: str) -> Any:
    """The ConfigDict of a configuration, named as on the command line: `custom`, `procedural:motion,smoke`, `my/own.py`.

    Raises:
      UserError: neither a shipped configuration nor a file.
    """
    file, colon, words = name.partition(":")
    get_config = runpy.run_path(str(find_config(file)))["get_config"]
    return get_config(words) if colon else get_config()
