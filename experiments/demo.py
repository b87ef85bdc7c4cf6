"""`python -m experiments.demo`: the command `bags-jax demo`, without installing anything."""

from bags_jax.cli.demo import run

if __name__ == "__main__":
    run()
