"""The quality benchmark: trains and scores every case, method and seed of a suite, and writes tables.

  python -m experiments.benchmarks.quality --suite=procedural --seeds=3 --workdir=runs/quality --at_once=2
  python -m experiments.benchmarks.quality --suite=blurball --data=DATA/blurball --seeds=3 --workdir=runs/quality_ball
  python -m experiments.benchmarks.quality --suite=ablations --seeds=3 --workdir=runs/ablations

Prints one line per finished run, then the tables. Writes results.csv (one line per run), results.md and results.tex
after every run, and marks figures that another commit has trained. The same command resumes a stopped benchmark:
finished runs are not repeated, and an interrupted run continues from its checkpoint. --cases='still_life-motion-*,corner-none' selects cases; --dry_run lists the runs;
--tables_only writes the tables of the finished runs. Each run is an ordinary working directory,
WORKDIR/runs/CASE/METHOD/SEED.
"""

import pathlib

from absl import flags

from bags_jax.cli.executor import interrupt_on_sigterm, start_executor
from bags_jax.cli.launch import launch
from bags_jax.errors import UserError
from bags_jax.metrics import LPIPS_EXTRA, lpips_available
from bags_jax.report.tables import markdown_table
from bags_jax.sweep import LOG_FILE, run_tasks
from experiments.benchmarks.quality import runs, suites, tables
from experiments.benchmarks.rows import find_commit

_SUITE = flags.DEFINE_enum("suite", "procedural", suites.SUITES, "Suite of cases.")
_CASES = flags.DEFINE_list(
    "cases",
    "all",
    "Names or patterns; all: those of the suite (procedural: every case without large, flight, both or varied in its name).",
)
_METHODS = flags.DEFINE_list("methods", "all", f"Some of {', '.join(suites.METHODS)}; all: those of the suite.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_seed", 100, "First seed; seeds under 100 are for tuning.", lower_bound=0)
_STEPS = flags.DEFINE_integer("num_steps", 0, "Number of training steps; 0: the suite's.", lower_bound=0)
_SMOKE = flags.DEFINE_bool("smoke", False, "A test of the benchmark itself: runs in seconds and learns nothing.")
_DATA = flags.DEFINE_string("data", "", "Folder of the photographs for blurball; empty: data/blurball.")
_DRY = flags.DEFINE_bool("dry_run", False, "List the runs and their status, and do nothing.")
_TABLES = flags.DEFINE_bool("tables_only", False, "Write the tables of the finished runs, and train nothing.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the benchmark.", required=True)


def make_task(run: runs.Run) -> runs.Task:
    """The task that trains and scores one run."""
    line = ["-m", "experiments.benchmarks.quality.train_one", f"--suite={_SUITE.value}", f"--workdir={_WORKDIR.value}"]
    line += [f"--case={run.case.name}", f"--method={run.method}", f"--seed={run.seed}"]
    line += [f"--num_steps={_STEPS.value}", f"--data={_DATA.value}"]
    return runs.Task(run.name, str(run.folder), tuple([*line, "--smoke"] if _SMOKE.value else line))


def train_missing(all_runs: list[runs.Run], workdir: pathlib.Path, write_tables) -> None:
    """Trains and scores the unfinished runs through the executors of `bags-jax sweep`, and writes the tables after each.

    Raises:
      UserError: some runs failed. Raised after all others have finished.
    """
    waiting = {make_task(run): run for run in all_runs if run.status() != "done"}
    count = len(all_runs) - len(waiting)
    print(f"{count} of {len(all_runs)} runs are done", flush=True)

    def tell(task, error):
        nonlocal count
        count += not error
        row = None if error else waiting[task].row()
        outcome = (
            f"{row['deblur_nerf']['PSNR']:.2f} dB, {row['train_seconds'] / 60:.1f} min" if row else f"FAILED: {error}"
        )
        print(f"[{count}/{len(all_runs)}] {task.name}: {outcome}", flush=True)
        write_tables()

    if not waiting:
        return
    with interrupt_on_sigterm():
        start, at_once = start_executor(list(waiting), workdir)
        errors = run_tasks(list(waiting), start, at_once=at_once, tell=tell)
    if failed := [task for task in waiting if errors[task]]:
        first = f"{failed[0].name}: {errors[failed[0]]}: see {failed[0].folder}/{LOG_FILE}"
        raise UserError(
            f"{len(failed)} of {len(waiting)} runs failed, the first: {first}; the same command tries them again"
        )


def known_commit() -> str:
    """The commit of this code; "" where nothing says it."""
    commit = find_commit()
    return "" if commit == "unknown" else commit


def main() -> None:
    """Runs the benchmark that the flags describe."""
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    cases = suites.find_cases(_SUITE.value, _CASES.value)
    methods = suites.find_methods(_SUITE.value, _METHODS.value)
    seeds = range(_FIRST.value, _FIRST.value + _SEEDS.value)
    data_root = suites.check_data(_SUITE.value, _DATA.value)
    settings = {"num_steps": _STEPS.value, "smoke": _SMOKE.value, "data_root": data_root}
    by_figure = runs.list_runs(workdir, cases, methods, seeds, **settings)
    all_runs, commit = runs.distinct(by_figure), known_commit()
    if _DRY.value:
        lines = [[run.name, run.status(), str(run.config.num_steps)] for run in all_runs]
        print(markdown_table(["run", "status", "steps"], lines))
        return

    def write_tables() -> list[tables.Table]:
        rows = {key: row for key, run in by_figure.items() if (row := run.row()) is not None}
        return tables.write_tables(workdir, tables.Results(cases, methods, seeds, rows, commit))

    if not _TABLES.value:
        train_missing(all_runs, workdir, write_tables)
    elif "done" not in [run.status() for run in all_runs]:  # status() also raises for runs of another configuration
        raise UserError(
            f"no run of these cases, methods and seeds is done in {workdir}: check --first_seed, --seeds and --cases"
        )
    for table in write_tables():
        print(f"\n{table.title}\n{markdown_table(table.header, table.rows)}", *table.footnotes, sep="\n")
    print(f"\nWrote {workdir}/results.csv, results.md and results.tex")
    if not lpips_available():
        print(f"LPIPS needs its weights: {LPIPS_EXTRA}")


if __name__ == "__main__":
    launch(main, resumes=True)
