"""`python -m experiments.sweep`: the command `bags-jax sweep`, without installing anything."""

from bags_jax.cli.sweep import run

if __name__ == "__main__":
    run()
