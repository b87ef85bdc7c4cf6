"""`python -m experiments.demo`: see bags_jax/cli/demo.py."""

from bags_jax.cli.demo import run

if __name__ == "__main__":
    run()
