"""`python -m experiments.export`: see bags_jax/cli/export.py."""

from bags_jax.cli.export import run

if __name__ == "__main__":
    run()
