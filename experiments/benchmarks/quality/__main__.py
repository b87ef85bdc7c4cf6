"""The quality benchmark: trains and scores every case, method and seed of a suite, and writes tables.

  python -m experiments.benchmarks.quality --suite=procedural --seeds=3 --workdir=runs/quality --jobs=2
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

from bags_jax.cli.launch import launch
from bags_jax.errors import UserError
from bags_jax.metrics import LPIPS_EXTRA, lpips_available
from bags_jax.report.tables import markdown_table
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
_JOBS = flags.DEFINE_integer("jobs", 1, "Number of runs at once, each on its share of the cores.", lower_bound=1)
_DATA = flags.DEFINE_string("data", "", "Folder of the photographs for blurball; empty: data/blurball.")
_DRY = flags.DEFINE_bool("dry_run", False, "List the runs and their status, and do nothing.")
_TABLES = flags.DEFINE_bool("tables_only", False, "Write the tables of the finished runs, and train nothing.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the benchmark.", required=True)


def make_command(run: runs.Run) -> list[str]:
    """Arguments of the Python process that trains and scores one run."""
    line = ["-m", "experiments.benchmarks.quality.train_one", f"--suite={_SUITE.value}", f"--workdir={_WORKDIR.value}"]
    line += [f"--case={run.case.name}", f"--method={run.method}", f"--seed={run.seed}"]
    line += [f"--num_steps={_STEPS.value}", f"--data={_DATA.value}"]
    return [*line, "--smoke"] if _SMOKE.value else line


def train_missing(all_runs: list[runs.Run], write_tables) -> None:
    """Trains and scores the unfinished runs, and writes the tables after each.

    Raises:
      UserError: some runs failed. Raised after all others have finished.
    """
    waiting = [run for run in all_runs if run.status() != "done"]
    count = len(all_runs) - len(waiting)
    print(f"{count} of {len(all_runs)} runs are done", flush=True)

    def finished(run, seconds, is_done):
        nonlocal count
        count += is_done
        row = run.row() if is_done else None
        outcome = f"{row['deblur_nerf']['PSNR']:.2f} dB" if row else f"FAILED: {runs.last_line(run)}"
        print(f"[{count}/{len(all_runs)}] {run.name}: {outcome}, {seconds / 60:.1f} min", flush=True)
        write_tables()

    failed = runs.run_all(waiting, make_command=make_command, jobs=_JOBS.value, finished=finished)
    if failed:
        first = f"{failed[0].name}: {runs.last_line(failed[0])}: see {failed[0].folder / 'log.txt'}"
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
        train_missing(all_runs, write_tables)
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
