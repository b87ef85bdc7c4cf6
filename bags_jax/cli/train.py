"""Trains a scene. The same command continues an interrupted training.

  bags-jax train --config=procedural:motion --workdir=runs/motion
  bags-jax train --config=custom --config.data.root=my_capture --workdir=runs/mine

Any setting can be changed: --config.num_steps=3000 --config.blur.kernel_sizes=3,7,13
Plain splatting, without a blur model: --config.blur.enabled=False
Watch the scene in a browser while it trains: --viewer

Several machines: start the same command on each, by srun, mpirun or Kubernetes, or by hand:
  bags-jax train ... --coordinator=node1:5000 --num_processes=2 --process_id=0
"""

import contextlib
import dataclasses
from typing import Any

from absl import flags
from ml_collections import config_flags

from bags_jax.cli.config_flag import read_config_flag
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.config import shipped_configs
from bags_jax.parallel import is_first
from bags_jax.processes import JOIN_LIMIT, join
from bags_jax.training import choose_settings, train
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
_COORDINATOR = flags.DEFINE_string("coordinator", "", "Several processes: HOST:PORT at which process 0 listens.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Several processes: how many.", lower_bound=0)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Several processes: the number of this one, from 0 on.")
_JOIN_LIMIT = flags.DEFINE_integer(
    "join_limit", JOIN_LIMIT, "Several processes: seconds until all must be there.", lower_bound=1
)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains with the configuration of the flags."""
    config = read_config_flag(_CONFIG)
    use_compilation_cache(str(config.compilation_cache))
    with join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, limit=_JOIN_LIMIT.value):
        if _VIEWER.value:
            train_in_view(config)
        else:
            train(config, _WORKDIR.value)


def train_in_view(config: Any) -> None:
    """Trains beside a viewer, which stays until Ctrl-C."""
    settings, chosen = choose_settings(config, _WORKDIR.value)
    period = checkpoint_period(settings.num_steps, settings.checkpoint_every)
    pictures_every = settings.pictures_every or settings.checkpoint_every  # not more of them for the viewer
    settings = dataclasses.replace(settings, checkpoint_every=period, pictures_every=pictures_every)
    for line in chosen:
        print(f"note: {line}", flush=True)
    if not is_first():
        train(dataclasses.asdict(settings), _WORKDIR.value)
        return
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
