"""`python -m experiments.render`: see bags_jax/cli/render.py."""

from bags_jax.cli.render import run

if __name__ == "__main__":
    run()
