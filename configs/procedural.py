"""The embedded scene: --config=configs/procedural.py:motion | defocus | mixed | none, and :motion,smoke.

python -m experiments.train --config=configs/procedural.py:motion --workdir=runs/motion
"""

from typing import Any

from configs import base

KINDS = ("motion", "defocus", "mixed", "none")


def get_config(arg: str = "motion") -> Any:
    """One kind of blur, at 128 x 84."""
    words = base.words_of(arg, *KINDS, "smoke")
    config = base.get_config()
    config.data.format = "procedural"
    config.data.blur = next((w for w in words if w in KINDS), "motion")
    config.data.width = 128  # px
    config.data.height = 84
    config.data.num_train = 24
    config.data.num_test = 5
    config.data.num_points = 1500
    config.data.seed = 0
    config.num_steps = 2300
    config.max_gaussians = 5000
    config.sh_degree = 0
    config.blur.kernel_sizes = (3, 5, 9)
    if "smoke" in words:
        config = base.smoke(config)
        config.data.width, config.data.height, config.data.num_train = 32, 24, 4
        config.data.num_test = 2
        config.data.num_points = 200
    return config
