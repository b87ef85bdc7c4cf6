"""What every program here shares: parse flags, run, and turn a user's mistake into one line and exit code 2."""

import ast
import contextlib
import os
import pathlib
import sys
import warnings
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes about the machine

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from bags_jax.cache_home import find_cache_home
from bags_jax.errors import UserError

# What ml_collections and configuration files raise for what stands in a flag or in such a file.
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


def launch(main: Callable[[], None], *, resumes: bool = False) -> None:
    """Runs a program. Flags are parsed first, then UserError is what the user can mend; all else is our bug.

    Args:
      main: the program.
      resumes: called again, it goes on where it was stopped.
    """

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except MISTAKES as error:
            fail(f"{_one_line(error)}: see --help")
        if len(rest) > 1:
            fail(f"the argument {rest[1]!r} was not expected: every argument here is a flag, --name=value")
        return rest

    def run(_):
        logging.set_verbosity(logging.ERROR)
        warnings.filterwarnings("ignore", module="orbax")
        sys.unraisablehook = _report_unraisable
        try:
            main()
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail(
                "interrupted" + resumes * ": the same command goes on from the last checkpoint, if there is one",
                code=130,
            )

    app.run(run, flags_parser=parse)


def _report_unraisable(unraisable) -> None:
    """Python's own report, but for the reads that Orbax leaves behind when one of them fails: they say nothing new."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def fail(message: str, *, code: int = 2) -> None:
    """Ends the program with one line."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: Exception) -> str:
    said = str(error)
    if "\\n" in said:
        with contextlib.suppress(ValueError, SyntaxError):  # lines that somebody has put in quotes
            said = str(ast.literal_eval(said))
    lines = said.strip().splitlines() or [type(error).__name__]
    if any("Traceback" in line for line in lines):  # of a configuration file: its last line says what is wrong
        lines = [lines[0].split(" Error whilst")[0].rstrip(":"), lines[-1].partition(": ")[2] or lines[-1]]
    text = " ".join(" ".join(lines).split()).rstrip(":. ").strip('"')
    if not (isinstance(error, KeyError | AttributeError) and text.startswith("'")):
        return text
    field, _, guess = text.partition(" ")
    return f"the configuration has no field {field}" + (
        f". {guess}" if guess else ", expected one of those in configs/base.py"
    )


def read_config(holder: flags.FlagHolder) -> ConfigDict:
    """The configuration of a flag; ml_collections reports a file that it could not load only here."""
    name = config_flags.get_config_filename(flags.FLAGS[holder.name])
    if not pathlib.Path(name.partition(":")[0]).is_file():
        raise UserError(f"--config={name} is no file: expected --config=FILE.py or --config=FILE.py:argument")
    try:
        config = holder.value
        config.num_steps  # noqa: B018
        return config
    except OSError as error:
        raise UserError(f"{_one_line(error)}: expected --config=FILE.py or --config=FILE.py:argument") from error


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs on disk, those that compile fast too, so that the second run starts at once; "auto": in the cache folder."""
    folder = str(find_cache_home() / "xla") if folder == "auto" else folder
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
