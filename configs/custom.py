"""Your own capture: a folder with images/ and the COLMAP model in sparse/0, or a nerfstudio or Blender transforms file.

  bags-jax train --config=custom --config.data.root=my_capture --workdir=runs/mine --config.minutes=10

Image size, number of steps, number of Gaussians and kernel sizes are chosen from the photographs, the device and `minutes`;
kernels are enlarged where a stage finds blur beyond their edge (--config.blur.enlarge_kernels=False keeps them). Training prints
its choice, and flags that set any of them: --config.data.factor=4 --config.num_steps=20000
--config.max_gaussians=1000000 --config.blur.kernel_sizes=5,9,17
"""

from typing import Any

from bags_jax.config import default_config, smoke, words_of


def get_config(arg: str = "") -> Any:
    """The default configuration with a budget of 8 minutes; `smoke` shrinks it to seconds on a CPU."""
    config = default_config()
    if "smoke" in words_of(arg, "smoke"):
        config.data.factor = 2
        return smoke(config)
    config.minutes = 8.0
    config.data.factor = config.num_steps = config.max_gaussians = 0
    config.blur.kernel_sizes = ()
    config.blur.enlarge_kernels = True
    return config
