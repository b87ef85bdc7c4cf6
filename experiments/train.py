"""`python -m experiments.train`: the command `bags-jax train`, without installing anything."""

from bags_jax.cli.train import run

if __name__ == "__main__":
    run()
