"""Trains and scores one run of the quality benchmark, in a process of its own; experiments.benchmarks.quality starts it.

  python -m experiments.benchmarks.quality_run --workdir=runs/quality --case=still_life-motion-hard --method=default --seed=100

A run that was cut off goes on from its checkpoint. Writes the training's folder to WORKDIR/runs/CASE/METHOD/SEED, and
row.json there when all is done.
"""

import datetime
import json
import os
import pathlib
import platform
import time

import jax
from absl import flags

from bags_jax.atomic import write_atomic
from bags_jax.cli.launch import launch, use_compilation_cache
from bags_jax.evaluation import evaluate
from bags_jax.training import train
from experiments.benchmarks import quality_runs, suites
from experiments.benchmarks.provenance import commit

_SUITE = flags.DEFINE_enum("suite", "procedural", suites.SUITES, "Suite of the case.")
_CASE = flags.DEFINE_string("case", None, "Name of the case.", required=True)
_METHOD = flags.DEFINE_enum("method", None, list(suites.METHODS), "Method.", required=True)
_SEED = flags.DEFINE_integer("seed", None, "Seed of the scene and of the training.", required=True)
_STEPS = flags.DEFINE_integer("num_steps", 0, "Another length of training; 0: the suite's.", lower_bound=0)
_SMOKE = flags.DEFINE_bool("smoke", False, "Everything in seconds, learning nothing.")
_DATA = flags.DEFINE_string("data", "", "Folder of the photographs, for blurball.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the benchmark.", required=True)

SESSIONS_FILE = "sessions.json"


def cpu_model() -> str:
    """Name of the processor."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict:
    """What the run ran on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu_model(), "cores": cores, "device": jax.devices()[0].device_kind, "jax": jax.__version__}


def note_session(folder: pathlib.Path) -> list[float]:
    """Notes that a session begins now; when each of the run's began, s since the epoch."""
    path = folder / SESSIONS_FILE
    starts = json.loads(path.read_text()) if path.exists() and quality_runs.is_begun(folder) else []
    starts.append(time.time())
    write_atomic(path, json.dumps(starts).encode())
    return starts


def main() -> None:
    """Trains, scores, and notes it all."""
    (case,) = suites.find_cases(_SUITE.value, [_CASE.value])
    run = quality_runs.make_run(
        pathlib.Path(_WORKDIR.value).expanduser(),
        case,
        _METHOD.value,
        _SEED.value,
        num_steps=_STEPS.value,
        smoke=_SMOKE.value,
        data_root=suites.check_data(_SUITE.value, _DATA.value),
    )
    if run.status() == "done":
        return
    begun_with = commit()  # before the hours in which somebody may commit
    use_compilation_cache(run.config.compilation_cache)
    starts = note_session(run.folder)
    train(run.config, run.folder)
    trained = time.time()
    results = evaluate(run.folder)
    row = {
        "suite": case.suite,
        "case": run.case.name,
        "method": run.method,
        "seed": run.seed,
        **{name: value for name, value in results.items() if name != "per_view"},
        "train_seconds": round(quality_runs.past_seconds(run.folder, starts) + trained - starts[-1], 1),
        "evaluate_seconds": round(time.time() - trained, 1),
        "cpu_seconds": round(time.process_time(), 1) if len(starts) == 1 else None,  # of a run that was never cut off
        "sessions": len(starts),
        "commit": begun_with,
        **machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_atomic(run.folder / quality_runs.ROW_FILE, (json.dumps(row, indent=2) + "\n").encode())


if __name__ == "__main__":
    launch(main)
