"""`python -m experiments.view`: the command `bags-jax view`, without installing anything."""

from bags_jax.cli.view import run

if __name__ == "__main__":
    run()
