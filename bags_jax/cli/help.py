"""The text of --help: what a program does, its flags, and for training all settings."""

import dataclasses
import os
import shutil
import sys
import textwrap
import types

from absl import flags

from bags_jax.settings import Rule, Settings, rows

ASKS_FOR_HELP = {"--help", "-help", "-h", "--helpshort"}  # --helpfull lists the flags of all libraries too
WIDTH = 100  # columns, or as many as the terminal has, if these are fewer
MIN_WIDTH = 30  # columns of the text beside names and defaults
NO_BREAK = "\xa0"
SETTINGS_TITLE = """\
Settings, with their defaults in --config=base; other configurations change some of them. Change one
by --config.NAME=VALUE; write commas between the values of a list. "steps or share": at most 1 is a
share of num_steps, more is a number of steps."""


def print_help(module: types.ModuleType) -> None:
    """Prints `describe_program`; a reader may close the pipe early (`--help | head`)."""
    try:
        print(describe_program(module), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends


def describe_program(module: types.ModuleType) -> str:
    """What a program does, and its flags. With a flag --config also all settings.

    Args:
      module: defines the flags; its docstring describes the program.
    """
    found = flags.FLAGS.get_key_flags_for_module(module)
    parts = [(module.__doc__ or "").strip(), "Flags:\n" + "\n".join(_describe_flag(flag) for flag in found)]
    if any(flag.name == "config" and not isinstance(flag, flags.MultiFlag) for flag in found):
        parts += [SETTINGS_TITLE, describe_settings()]
    return "\n\n".join(parts)


def _describe_flag(flag: flags.Flag) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    if any("must have a value" in validator.message for validator in flag.validators):
        return _table_row([name], [20], f"{flag.help} [required]")
    default = "" if flag.default is None else f" [default: {flag.default}]"
    return _table_row([name], [20], f"{flag.help}{default}")


def describe_settings() -> str:
    """A table of all settings: name, default, meaning, and in brackets unit and range."""
    groups = {
        field.name: field.default for field in dataclasses.fields(Settings) if dataclasses.is_dataclass(field.default)
    }
    parts = []
    for group, kind in {"": Settings(), **groups}.items():
        found = [row for row in rows() if row[0].rpartition(".")[0] == group]
        lines = [_table_row([name, _as_typed(default)], [28, 13], _explain(rule)) for name, default, rule in found]
        parts.append("\n".join([f"{group}: {kind.__doc__}" if group else kind.__doc__, *lines]))
    return "\n\n".join(parts)


def _as_typed(default) -> str:
    """A default value as one types it on the command line."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "()"
    return str(default) or '""'


def _explain(rule: Rule) -> str:
    details = ", ".join(filter(None, (rule.unit, rule.expected))).replace(" ", NO_BREAK)
    return f"{rule.meaning} [{details}]" if details else rule.meaning


def _table_row(cells: list[str], widths: list[int], text: str) -> str:
    """Columns of fixed width, then a text that wraps within its own column."""
    head = "  " + " ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " "
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) - len(head)
    wrapped = textwrap.wrap(text, max(width, MIN_WIDTH), break_on_hyphens=False)
    return (head + ("\n" + " " * len(head)).join(wrapped)).replace(NO_BREAK, " ")
