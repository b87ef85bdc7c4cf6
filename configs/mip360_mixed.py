"""Mip-NeRF 360 at mixed resolution, as in the BAGS paper: some photographs are downscaled and resized back.

--config=mip360_mixed:garden             the defaults of this project
--config=mip360_mixed:garden,published   the settings of the BAGS authors for this scene
--config=mip360_mixed:garden,smoke       seconds on a CPU

  bags-jax train --config=mip360_mixed:garden --config.data.root=DATA/garden --workdir=runs/garden
"""

from typing import Any

from bags_jax import published
from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "garden") -> Any:
    """One published scene; the words `published` and `smoke` may follow it."""
    name, _, rest = arg.partition(",")
    words = words_of(rest, "published", "smoke")
    row = published.pick("mip360", name)
    config = default_config()
    config.data.root = f"data/{name}"
    config.data.factor = 8
    config.data.mixed_factors = (1, 2, 4, 8)
    config.blur.linear_light = False  # a program that resizes a photograph averages the values of the file
    config.data.holdout = int(row["holdout"])
    if "published" in words:
        config = published.as_published(config, row)
    return smoke(config) if "smoke" in words else config
