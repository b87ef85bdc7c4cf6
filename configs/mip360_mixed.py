"""Mip-NeRF 360 with mixed resolution: some photographs downscaled and resized back up, as the BAGS paper makes them.

--config=configs/mip360_mixed.py:garden             our one configuration
--config=configs/mip360_mixed.py:garden,published   BAGS with the authors' settings for this scene
--config=configs/mip360_mixed.py:garden,smoke       seconds on a CPU

  python -m experiments.train --config=configs/mip360_mixed.py:garden --config.data.root=DATA/garden --workdir=runs/garden
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
    config.data.holdout = int(row["holdout"])
    if "published" in words:
        config = published.as_published(config, row)
    return smoke(config) if "smoke" in words else config
