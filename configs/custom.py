"""Your own capture: a folder with images/ and the COLMAP model in sparse/0, or a nerfstudio or Blender transforms file.

  bags-jax train --config=custom --config.data.root=my_capture --workdir=runs/mine

20 000 steps at half the size of the photographs, meant for a GPU. On a CPU, photographs about 300 px wide take minutes:
--config.data.factor=8 --config.num_steps=3200 --config.max_gaussians=16000 --config.blur.kernel_sizes=3,7,13
"""

from typing import Any

from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "") -> Any:
    """The default configuration, photographs at half size; `smoke` shrinks it to seconds on a CPU."""
    config = default_config()
    config.data.factor = 2
    return smoke(config) if "smoke" in words_of(arg, "smoke") else config
