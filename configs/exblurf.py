"""The data set of ExBluRF (Lee et al. 2023): extreme camera motion, photographs of LLFF's layout, every 7th sharp and held out.

  bags-jax train --config=exblurf --config.data.root=DATA/exblur/camellia --workdir=runs/camellia

Its synthetic scenes have poses_bounds_subframes.npy, the poses during each exposure: training views get the one in the middle.
--config=exblurf:smoke runs a dozen steps.
"""

from typing import Any

from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "") -> Any:
    """The defaults, with the held-out views of this data set."""
    config = default_config()
    config.data.format = "llff"
    config.data.holdout = 7
    return smoke(config) if "smoke" in words_of(arg, "smoke") else config
