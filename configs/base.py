"""The defaults, for every scene. bags_jax/settings.py has each setting with its meaning, unit and range.

  bags-jax train --config=base --config.data.root=my_capture --workdir=runs/mine

--config=base:smoke runs a dozen steps, seconds on a CPU. Change any setting on the command line:
--config.num_steps=3000 --config.blur.kernel_sizes=3,7,13
"""

from typing import Any

from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "") -> Any:
    """The defaults; `smoke` shrinks them to seconds on a CPU."""
    config = default_config()
    return smoke(config) if "smoke" in words_of(arg, "smoke") else config
