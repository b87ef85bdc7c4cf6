"""Trains and scores a grid of configurations, variants and seeds, on this machine or a SLURM cluster.

  bags-jax sweep --config=procedural:motion,procedural:defocus --seeds=3 --workdir=runs/sweep
  bags-jax sweep --config=custom --settings="data.root=my_capture" --variant="" \\
      --variant="blur.enabled=False" --executor=slurm --partition=gpu --workdir=runs/sweep

The same command goes on where it stopped. A task that fails is named and stops no other. The table
of all scores is in WORKDIR/sweep.csv. Needs the extra [sweep]: pip install 'bags-jax[sweep]'
"""

import pathlib

from absl import flags

from bags_jax.cli.executor import interrupt_on_sigterm, start_executor
from bags_jax.cli.launch import launch
from bags_jax.errors import UserError
from bags_jax.sweep import (
    LOG_FILE,
    TABLE_FILE,
    make_tasks,
    run_tasks,
    split_configs,
    write_table,
)
from bags_jax.workdir_lock import lock_workdir

_CONFIG = flags.DEFINE_multi_string(
    "config", None, "Configurations as in bags-jax train, with commas between them.", required=True
)
_SETTINGS = flags.DEFINE_string("settings", "", "Settings of all tasks: NAME=VALUE, with spaces between them.")
_VARIANT = flags.DEFINE_multi_string("variant", [""], "Settings of one variant; once for each, empty for none.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_seed", 0, "The first seed.", lower_bound=0)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; one folder in it for each task.", required=True)


def main() -> None:
    """Runs the sweep of the flags and prints its table."""
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    configs = [name for text in _CONFIG.value for name in split_configs(text)]
    seeds = range(_FIRST.value, _FIRST.value + _SEEDS.value)
    tasks = make_tasks(configs, _VARIANT.value, seeds, settings=_SETTINGS.value, workdir=workdir)
    num_done = 0

    def tell(task, error):
        nonlocal num_done
        num_done += 1
        print(f"[{num_done}/{len(tasks)}] {task.name}: {f'FAILED: {error}' if error else 'done'}", flush=True)

    with lock_workdir(workdir), interrupt_on_sigterm():
        start, at_once = start_executor(tasks, workdir)
        print(f"{len(tasks)} tasks, {at_once} at once; logs: {workdir}/*/{LOG_FILE}", flush=True)
        errors = run_tasks(tasks, start, at_once=at_once, tell=tell)
        print(write_table(tasks, errors, workdir), f"\nWrote {workdir / TABLE_FILE}", sep="\n")
    if failed := [task for task in tasks if errors[task]]:
        raise UserError(
            f"{len(failed)} of {len(tasks)} tasks failed, the first: {failed[0].name}: {errors[failed[0]]}; the same command tries them again"
        )


def run() -> None:
    """The command `bags-jax sweep`."""
    launch(main, resumes=True, one_config=False)
