"""Trains a scene; run again with the same --workdir, it goes on where it was stopped.

  python -m experiments.train --config=configs/procedural.py:motion --workdir=runs/motion
  python -m experiments.train --config=configs/custom.py --config.data.root=my_capture --workdir=runs/mine

Every field of a configuration can be set: --config.num_steps=3000 --config.blur.kernel_sizes=3,7,13
--config.blur.enabled=False trains plain splatting. All fields and their meaning: configs/base.py.
"""

from absl import flags
from ml_collections import config_flags

from bags_jax.cli.launch import launch, read_config, use_compilation_cache
from bags_jax.training import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with its argument.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints and logs.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains from the flags."""
    config = read_config(_CONFIG)
    use_compilation_cache(str(config.compilation_cache))
    train(config, _WORKDIR.value)


def run() -> None:
    """The program, as a command."""
    launch(main, resumes=True)


if __name__ == "__main__":
    run()
