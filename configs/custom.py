"""One's own capture: a folder with images/ and the COLMAP model in sparse/0, or a nerfstudio or Blender transforms file.

python -m experiments.train --config=configs/custom.py --config.data.root=my_capture --workdir=runs/mine
"""

from typing import Any

from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "") -> Any:
    """The default configuration, photographs at half size; `smoke` shrinks it to seconds on a CPU."""
    config = default_config()
    config.data.factor = 2
    return smoke(config) if "smoke" in words_of(arg, "smoke") else config
