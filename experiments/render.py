"""`python -m experiments.render`: the command `bags-jax render`, without installing anything."""

from bags_jax.cli.render import run

if __name__ == "__main__":
    run()
