"""Trains a scene. The same command continues an interrupted training.

  bags-jax train --config=procedural:motion --workdir=runs/motion
  bags-jax train --config=custom --config.data.root=my_capture --workdir=runs/mine

Any setting can be changed: --config.num_steps=3000 --config.blur.kernel_sizes=3,7,13
Plain splatting, without a blur model: --config.blur.enabled=False
"""

from absl import flags
from ml_collections import config_flags

from bags_jax.cli.config_flag import read_config_flag
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.config import shipped_configs
from bags_jax.training import train

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Configuration: {', '.join(shipped_configs())} or a Python file; words may follow a colon (procedural:motion,smoke).",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints and logs.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains with the configuration of the flags."""
    config = read_config_flag(_CONFIG)
    use_compilation_cache(str(config.compilation_cache))
    train(config, _WORKDIR.value)


def run() -> None:
    """The command `bags-jax train`."""
    launch(main, resumes=True)
