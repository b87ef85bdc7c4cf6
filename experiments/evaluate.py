"""`python -m experiments.evaluate`: see bags_jax/cli/evaluate.py."""

from bags_jax.cli.evaluate import run

if __name__ == "__main__":
    run()
