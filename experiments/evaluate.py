"""`python -m experiments.evaluate`: the command `bags-jax evaluate`, without installing anything."""

from bags_jax.cli.evaluate import run

if __name__ == "__main__":
    run()
