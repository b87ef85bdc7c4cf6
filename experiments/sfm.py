"""`python -m experiments.sfm`: the command `bags-jax sfm`, without installing anything."""

from bags_jax.cli.sfm import run

if __name__ == "__main__":
    run()
