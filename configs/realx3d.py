"""RealX3D (2025): real photographs with motion or defocus blur, sharp held-out ones, at 600 x 400 px of its quarter size.

  bags-jax train --config=realx3d:motion --config.data.root=DATA/data_4/motion_strong/Popcorn --workdir=runs/popcorn

motion | defocus  the poses of the photographs with motion are those of the end of their exposures; defocus has no motion
smoke             a dozen steps
"""

from typing import Any

from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "motion") -> Any:
    """The defaults, with the layout and the poses of this data set."""
    words = words_of(arg, "motion", "defocus", "smoke")
    config = default_config()
    config.data.format = "realx3d"
    config.data.factor = 3
    config.data.shutter_anchor = "mid" if "defocus" in words else "end"
    return smoke(config) if "smoke" in words else config
