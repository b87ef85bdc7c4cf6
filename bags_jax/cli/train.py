"""Trains a scene. The same command continues an interrupted training.

  bags-jax train --config=procedural:motion --workdir=runs/motion
  bags-jax train --config=custom --config.data.root=my_capture --workdir=runs/mine

Any setting can be changed: --config.num_steps=3000 --config.blur.kernel_sizes=3,7,13
Plain splatting, without a blur model: --config.blur.enabled=False
Watch the scene in a browser while it trains: --viewer
"""

import contextlib
import dataclasses
from typing import Any

from absl import flags
from ml_collections import config_flags

from bags_jax.budget import fill_in
from bags_jax.cli.config_flag import read_config_flag
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.config import read_config, shipped_configs
from bags_jax.training import train
from bags_jax.viewer.beside_training import checkpoint_period, watch_training
from bags_jax.viewer.port import HOST, PORT, describe_address

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"Configuration: {', '.join(shipped_configs())} or a Python file; words may follow a colon (procedural:motion,smoke).",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints and logs.", required=True)
_VIEWER = flags.DEFINE_bool(
    "viewer", False, "Serve the scene to a browser while it trains, and until Ctrl-C afterwards."
)
_VIEWER_PORT = flags.DEFINE_integer("viewer_port", PORT, "Port of the viewer.", lower_bound=1, upper_bound=65535)
_VIEWER_HOST = flags.DEFINE_string("viewer_host", HOST, "Address at which the viewer listens.")
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains with the configuration of the flags."""
    config = read_config_flag(_CONFIG)
    use_compilation_cache(str(config.compilation_cache))
    if _VIEWER.value:
        train_in_view(config)
    else:
        train(config, _WORKDIR.value)


def train_in_view(config: Any) -> None:
    """Trains beside a viewer, which stays until Ctrl-C."""
    settings, chosen = fill_in(read_config(config), _WORKDIR.value)
    period = checkpoint_period(settings.num_steps, settings.checkpoint_every)
    settings = dataclasses.replace(settings, checkpoint_every=period)
    for line in chosen:
        print(f"note: {line}", flush=True)
    host, port = _VIEWER_HOST.value, _VIEWER_PORT.value
    address = describe_address(host, port)
    with watch_training(_WORKDIR.value, host=host, port=port) as viewer:
        print(f"The viewer is at {address}; a new checkpoint every {period} steps.", flush=True)
        train(dataclasses.asdict(settings), _WORKDIR.value)
        print(f"Training is done. The viewer stays at {address} until Ctrl-C.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            viewer.join()


def run() -> None:
    """The command `bags-jax train`."""
    launch(main, resumes=True)
