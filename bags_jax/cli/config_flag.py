"""The flag --config of a program: a shipped configuration or a file, and its values."""

import re

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import get_config_filename

from bags_jax.config import find_config
from bags_jax.errors import UserError


def expand_config(argv: list[str]) -> list[str]:
    """Replaces the name of a shipped configuration after --config by its file, which ml_collections expects.

    Raises:
      UserError: neither a shipped configuration nor a file.
    """
    expanded = list(argv)
    for i, argument in enumerate(argv):
        if match := re.match(r"(--?config=)(.+)", argument):
            expanded[i] = match[1] + _expand(match[2])
        elif re.fullmatch(r"--?config", argument) and i + 1 < len(argv):
            expanded[i + 1] = _expand(argv[i + 1])
    return expanded


def _expand(value: str) -> str:
    name, colon, words = value.partition(":")
    return f"{find_config(name)}{colon}{words}"


def read_config_flag(holder: flags.FlagHolder) -> ConfigDict:
    """The configuration of a flag.

    Raises:
      UserError: its file cannot be read, or does not return a ConfigDict. (ml_collections says so only at first use.)
    """
    try:
        holder.value.num_steps  # noqa: B018
    except (OSError, AttributeError) as error:
        name, reason = get_config_filename(flags.FLAGS[holder.name]), " ".join(str(error).split())
        raise UserError(
            f"--config={name} gives no settings ({reason}): its get_config() has to return a ConfigDict, as "
            "bags_jax.config.default_config() does"
        ) from error
    return holder.value
