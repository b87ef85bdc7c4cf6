"""`python -m experiments.export`: the command `bags-jax export`, without installing anything."""

from bags_jax.cli.export import run

if __name__ == "__main__":
    run()
