"""`python -m experiments.train`: see bags_jax/cli/train.py."""

from bags_jax.cli.train import run

if __name__ == "__main__":
    run()
