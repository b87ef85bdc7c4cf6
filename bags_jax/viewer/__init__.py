"""The viewer: a trained scene in a browser, also while it trains. `bags_jax.viewer.server` is its one door."""
