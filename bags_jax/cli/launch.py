"""Runs a program: parses its flags, and turns a mistake of the user into one line and exit code 2."""

import ast
import contextlib
import pathlib
import re
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags, logging

from bags_jax.cache_home import find_cache_home
from bags_jax.cli.config_flag import expand_config
from bags_jax.cli.help import ASKS_FOR_HELP, print_help
from bags_jax.errors import UserError

# Exceptions with which absl, ml_collections and configuration files answer a bad flag or configuration.
MISTAKES = (
    flags.Error,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    OSError,
    ImportError,
    SyntaxError,
    NameError,
)


def launch(main: Callable[..., None], *, resumes: bool = False, positional: str = "", one_config: bool = True) -> None:
    """Parses the flags and runs a program. Exit code 2: a mistake of the user, in one line; 130: Ctrl-C.

    After the flags are parsed, only UserError is a mistake of the user. Any other exception is a bug and keeps its traceback.

    Args:
      main: the program.
      resumes: the same command continues an interrupted run.
      one_config: the flag --config, if there is one, names one configuration, and its settings are flags.
      positional: name of the one argument that is no flag, which `main` gets; "": there is none.
    """

    def parse(argv):
        if ASKS_FOR_HELP & set(argv[1:]):
            print_help(sys.modules[main.__module__])
            sys.exit(0)
        try:
            rest = flags.FLAGS(expand_config(argv) if one_config and "config" in flags.FLAGS else argv)
        except UserError as error:
            fail(str(error))
        except MISTAKES as error:
            fail(f"{_one_line(error)}: see --help")
        if positional and len(rest) < 2:
            fail(f"{positional} is missing: see --help")
        if len(rest) > 1 + bool(positional):
            only = f"{positional} comes once, and every other" if positional else "every"
            fail(
                f"the argument {rest[1 + bool(positional)]!r} was not expected: {only} argument here is a flag, --name=value"
            )
        return rest

    def run(argv):
        logging.set_verbosity(logging.ERROR)
        warnings.filterwarnings("ignore", module="orbax")
        sys.unraisablehook = _report_unraisable
        try:
            main(*argv[1:])
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            hint = ": the same command continues from the last checkpoint, if there is one" if resumes else ""
            fail(f"interrupted{hint}", code=130)

    app.run(run, flags_parser=parse)


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Prints an error in one line and ends the program."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _report_unraisable(unraisable) -> None:
    """Python's report, except for reads that Orbax abandons when one of them fails: that failure is reported anyway."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _one_line(error: Exception) -> str:
    said = str(error)
    if "\\n" in said:
        with contextlib.suppress(ValueError, SyntaxError):  # absl quotes the message of a parser
            said = str(ast.literal_eval(said))
    lines = said.strip().splitlines() or [type(error).__name__]
    if any("Traceback" in line for line in lines):  # of a configuration file: its last line has the error
        flag, said = lines[0].split(" Error whilst")[0], lines[-1].partition(": ")[2] or lines[-1]
        lines = [f"{flag.removeprefix('flag ').rstrip(':')}: {said}"]
    text = " ".join(" ".join(lines).split()).rstrip(":. ").strip('"')
    if missing := re.match(r"flag (--\w+)=None: ", text):
        return f"{missing[1]} is missing"
    if not (isinstance(error, KeyError | AttributeError) and text.startswith("'")):
        return text
    field, _, guess = text.partition(" ")  # ml_collections: 'nokey' Did you mean ...?
    return f"the configuration has no field {field}" + (f". {guess}" if guess else "")


def use_compilation_cache(folder: str) -> None:
    """Stores every compiled program in a folder, so that the next run starts at once. auto: in the cache folder; "": nowhere."""
    folder = str(find_cache_home() / "xla") if folder == "auto" else folder
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
