"""`python -m experiments.run`: the command `bags-jax run`, without installing anything."""

from bags_jax.cli.run import run

if __name__ == "__main__":
    run()
