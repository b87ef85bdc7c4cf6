"""How sharp the result is: trains and scores every case, method and seed of a suite, and writes the tables.

  python -m experiments.benchmarks.quality --suite=procedural --seeds=3 --workdir=runs/quality --jobs=2
  python -m experiments.benchmarks.quality --suite=procedural --cases='still_life-motion-*,corner-none' --seeds=1 --workdir=...
  python -m experiments.benchmarks.quality --suite=blurball --data=DATA/blurball --seeds=3 --workdir=runs/quality_ball

The same command goes on where it was stopped: what is done is not repeated, a run that was cut off resumes. Writes
results.csv (one line a run), results.md and results.tex after every run; --tables_only makes them from what is there,
--dry_run says what there is to do. Each run lies in WORKDIR/runs/CASE/METHOD/SEED, a training folder like any other.
"""

import pathlib

from absl import flags

from bags_jax.cli.launch import launch
from bags_jax.errors import UserError
from bags_jax.metrics import LPIPS_EXTRA, lpips_available
from bags_jax.report.tables import markdown_table
from experiments.benchmarks import quality_runs, quality_tables, suites

_SUITE = flags.DEFINE_enum("suite", "procedural", suites.SUITES, "Cases to choose from.")
_CASES = flags.DEFINE_list("cases", "all", "Names or patterns; all: those of the suite that do not end in -large.")
_METHODS = flags.DEFINE_list("methods", "all", f"Some of {', '.join(suites.METHODS)}; all: those the suite can have.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_seed", 100, "First seed; those under 100 are for tuning.", lower_bound=0)
_STEPS = flags.DEFINE_integer("num_steps", 0, "Another length of training; 0: the suite's.", lower_bound=0)
_SMOKE = flags.DEFINE_bool("smoke", False, "Everything in seconds, learning nothing: a test of the road itself.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at once, each on its share of the cores.", lower_bound=1)
_DATA = flags.DEFINE_string("data", "", "Folder of the photographs, for blurball; default: data/blurball.")
_DRY = flags.DEFINE_bool("dry_run", False, "Say what would run and what is done; do nothing.")
_TABLES = flags.DEFINE_bool("tables_only", False, "Write the tables from what is there; train nothing.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the benchmark.", required=True)


def command_line(run: quality_runs.Run) -> list[str]:
    """Arguments of the Python that does one run."""
    line = ["-m", "experiments.benchmarks.quality_run", f"--suite={_SUITE.value}", f"--workdir={_WORKDIR.value}"]
    line += [f"--case={run.case.name}", f"--method={run.method}", f"--seed={run.seed}"]
    line += [f"--num_steps={_STEPS.value}", f"--data={_DATA.value}"]
    return [*line, "--smoke"] if _SMOKE.value else line


def train_missing(runs: list[quality_runs.Run], write) -> None:
    """Does the runs that are not done, writing the tables after each.

    Raises:
      UserError: some failed; the others are done all the same.
    """
    waiting = [run for run in runs if run.status() != "done"]
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are done", flush=True)
    count = len(runs) - len(waiting)

    def finished(run, seconds, is_done):
        nonlocal count
        count += is_done
        psnr = (
            f"{(run.row() or {})['deblur_nerf']['PSNR']:.2f} dB"
            if is_done
            else f"FAILED: {quality_runs.last_line(run)}"
        )
        print(f"[{count}/{len(runs)}] {run.name}: {psnr}, {seconds / 60:.1f} min", flush=True)
        write()

    failed = quality_runs.work_off(waiting, arguments=command_line, jobs=_JOBS.value, finished=finished)
    if failed:
        what = f"{len(failed)} of {len(waiting)} runs failed, the first: {failed[0].name}: {quality_runs.last_line(failed[0])}"
        raise UserError(f"{what}: see {failed[0].folder / 'log.txt'}; the same command tries them again")


def main() -> None:
    """The benchmark from the flags."""
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    cases = suites.find_cases(_SUITE.value, _CASES.value)
    methods = suites.find_methods(_SUITE.value, _METHODS.value)
    seeds = range(_FIRST.value, _FIRST.value + _SEEDS.value)
    settings = {
        "num_steps": _STEPS.value,
        "smoke": _SMOKE.value,
        "data_root": suites.check_data(_SUITE.value, _DATA.value),
    }
    runs = quality_runs.list_runs(workdir, cases, methods, seeds, **settings)
    each = quality_runs.distinct(runs)
    if _DRY.value:
        print(markdown_table(["run", "status", "steps"], [[r.name, r.status(), str(r.config.num_steps)] for r in each]))
        return

    def write() -> list[quality_tables.Table]:
        rows = {key: row for key, run in runs.items() if (row := run.row()) is not None}
        return quality_tables.write_tables(workdir, quality_tables.Results(cases, methods, seeds, rows))

    if not _TABLES.value:
        train_missing(each, write)
    elif "done" not in [run.status() for run in each]:  # which also refuses runs of another configuration
        raise UserError(
            f"no run of these cases, methods and seeds is done in {workdir}: see --first_seed, --seeds and --cases"
        )
    for table in write():
        print(f"\n{table.title}\n{markdown_table(table.header, table.rows)}")
    print(f"\nWritten: {workdir}/results.csv, results.md, results.tex")
    if not lpips_available():
        print(f"LPIPS needs its weights: {LPIPS_EXTRA}")


if __name__ == "__main__":
    launch(main, resumes=True)
