"""`python -m bags_jax`: the command `bags-jax`."""

from bags_jax.cli.main import main

main()
