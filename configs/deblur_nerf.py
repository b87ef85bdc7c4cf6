"""The Deblur-NeRF benchmark (Ma et al. 2022), real photographs: 10 scenes with camera motion, 10 with defocus.

--config=deblur_nerf:blurball             the defaults of this project
--config=deblur_nerf:blurball,published   the settings of the BAGS authors for this scene
--config=deblur_nerf:blurball,smoke       seconds on a CPU

On a GPU, at the 600 x 400 px of the benchmark:
  bags-jax train --config=deblur_nerf:blurball --config.data.root=DATA/blurball --workdir=runs/ball
On a CPU, at 300 x 200 px: 4.2 minutes on one core of an AMD EPYC, 29.5 dB on held-out views:
  bags-jax train --config=deblur_nerf:blurball --config.data.root=DATA/blurball --workdir=runs/ball \
    --config.data.factor=8 --config.num_steps=3200 --config.max_gaussians=16000 --config.blur.kernel_sizes=3,7,13
"""

from typing import Any

from bags_jax import published
from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "blurball") -> Any:
    """One published scene; the words `published` and `smoke` may follow it."""
    name, _, rest = arg.partition(",")
    words = words_of(rest, "published", "smoke")
    row = published.pick("deblur", name)
    config = default_config()
    config.data.root = f"data/{name}"
    config.data.factor = 4  # 2400 x 1600 -> 600 x 400
    config.data.holdout = int(row["holdout"])
    if "published" in words:
        config = published.as_published(config, row)
    return smoke(config) if "smoke" in words else config
