"""Runs a command in the process of the tests, so that its flags are gone afterwards."""

import sys

from absl import flags


def run_with_own_flags(run, module: str) -> int | None:
    """Calls `run`, which imports the module of a command, and returns its exit code; None: it ended by itself."""
    before, code = set(flags.FLAGS), None
    sys.modules.pop("config_config", None)  # the last configuration file, as ml_collections names it
    for name in (module, "bags_jax.cli.executor"):
        sys.modules.pop(name, None)  # importing it again defines its flags again
    try:
        run()
    except SystemExit as end:
        code = end.code
    finally:
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    return code
