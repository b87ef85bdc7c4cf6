"""Trains and scores one run of the quality benchmark. `experiments.benchmarks.quality` starts one process per run.

  python -m experiments.benchmarks.quality.train_one --workdir=runs/quality --case=corner-none --method=plain --seed=100

Prints the progress of the training. Writes the run's folder WORKDIR/runs/CASE/METHOD/SEED, and row.json in it at the
end. An interrupted run continues from its checkpoint.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import time

import jax
from absl import flags

from bags_jax.atomic import write_atomic
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.evaluation import evaluate
from bags_jax.training import train
from experiments.benchmarks.quality import ablations, runs, suites
from experiments.benchmarks.rows import find_commit

_SUITE = flags.DEFINE_enum("suite", "procedural", suites.SUITES, "Suite of the case.")
_CASE = flags.DEFINE_string("case", None, "Name of the case.", required=True)
_METHOD = flags.DEFINE_enum("method", None, list(suites.METHODS), "Method.", required=True)
_SEED = flags.DEFINE_integer("seed", None, "Seed of the scene and of the training.", required=True)
_STEPS = flags.DEFINE_integer("num_steps", 0, "Number of training steps; 0: the suite's.", lower_bound=0)
_SMOKE = flags.DEFINE_bool("smoke", False, "A test of the benchmark itself: runs in seconds and learns nothing.")
_DATA = flags.DEFINE_string("data", "", "Folder of the photographs for blurball.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the benchmark.", required=True)

SESSIONS_FILE = "sessions.json"  # start of each process that worked on the run, s since the epoch


def describe_machine() -> dict:
    """Hardware and JAX version of this process."""
    info = pathlib.Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    cpu = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "device": jax.devices()[0].device_kind, "jax": jax.__version__}


def record_start(folder: pathlib.Path) -> list[float]:
    """Appends the current time to SESSIONS_FILE; returns the start times of all sessions of the run."""
    path = folder / SESSIONS_FILE
    starts = json.loads(path.read_text()) if path.exists() and runs.is_begun(folder) else []
    starts.append(time.time())
    write_atomic(path, json.dumps(starts).encode())
    return starts


def main() -> None:
    """Trains and scores the run of the flags, and writes its row."""
    (case,) = suites.find_cases(_SUITE.value, [_CASE.value])
    workdir, data_root = pathlib.Path(_WORKDIR.value).expanduser(), suites.check_data(_SUITE.value, _DATA.value)
    settings = {"num_steps": _STEPS.value, "smoke": _SMOKE.value, "data_root": data_root}
    run = runs.make_run(workdir, case, _METHOD.value, _SEED.value, **settings)
    if run.status() == "done":
        return
    commit = find_commit()  # now: somebody may commit during the hours of training
    use_compilation_cache(run.config.compilation_cache)
    starts = record_start(run.folder)
    make_model = ablations.find_make_model(run.method)
    train(run.config, run.folder, make_model=make_model)
    trained = time.time()
    results = evaluate(run.folder, make_model=make_model)
    row = {
        "suite": case.suite,
        "case": run.case.name,
        "method": run.method,
        "seed": run.seed,
        **{name: value for name, value in results.items() if name != "per_view"},
        "train_seconds": round(runs.past_seconds(run.folder, starts) + trained - starts[-1], 1),
        "evaluate_seconds": round(time.time() - trained, 1),
        "cpu_seconds": round(time.process_time(), 1) if len(starts) == 1 else None,  # None: the run was interrupted
        "sessions": len(starts),
        "commit": commit,
        **describe_machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_atomic(run.folder / runs.ROW_FILE, (json.dumps(row, indent=2) + "\n").encode())


if __name__ == "__main__":
    launch(main)
