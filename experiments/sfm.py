"""`python -m experiments.sfm`: see bags_jax/cli/sfm.py."""

from bags_jax.cli.sfm import run

if __name__ == "__main__":
    run()
