"""The grid of a sweep, its tasks under submitit's local executor, and the table at its end."""

import contextlib
import csv
import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from bags_jax import sweep
from bags_jax.cli.main import main
from bags_jax.errors import UserError
from tests.commands import run_with_own_flags

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("procedural:motion", ["procedural:motion"]),
        ("procedural:motion,smoke,procedural:defocus", ["procedural:motion,smoke", "procedural:defocus"]),
        ("custom,procedural", ["custom", "procedural"]),
        ("nothing:here,custom", ["nothing:here", "custom"]),
    ],
)
def test_configurations_and_their_words(text, expected):
    assert sweep.split_configs(text) == expected


def make_tasks(**changes):
    options = {"configs": ["procedural:motion,smoke"], "variants": ["", "loss.sharp=0"], "seeds": range(2)}
    options |= {"settings": "num_steps=12", "workdir": pathlib.Path("/sweep"), **changes}
    return sweep.make_tasks(options.pop("configs"), options.pop("variants"), options.pop("seeds"), **options)


def test_tasks_of_a_grid():
    tasks = make_tasks()
    assert [task.name for task in tasks] == [
        "procedural-motion,smoke,seed=0",
        "procedural-motion,smoke,loss.sharp=0,seed=0",
        "procedural-motion,smoke,seed=1",
        "procedural-motion,smoke,loss.sharp=0,seed=1",
    ]
    assert tasks[3].settings == ("num_steps=12", "loss.sharp=0") and tasks[3].folder.startswith("/sweep/")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variants": ["sharp"]}, "expected NAME=VALUE"),
        ({"settings": "seed=3"}, "seeds by --seeds"),
        ({"variants": ["a=1", "a=1"]}, "comes twice"),
    ],
)
def test_grids_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_tasks(**changes)


class Job:
    """A job of submitit that is done at the third look."""

    def __init__(self, result):
        self.result, self.looks = result, 0
        self.paths = type("Paths", (), {"stderr": "x.err"})

    def done(self):
        self.looks += 1
        return self.looks > 2


def test_so_many_tasks_at_once_and_a_lost_one_stops_none(monkeypatch):
    monkeypatch.setattr(sweep, "PERIOD", 0)
    slots, told = [], []

    def start(task, slot):
        slots.append(slot)
        return Job((lambda: 1 / 0) if len(slots) == 2 else lambda: "")

    errors = sweep.run_tasks(make_tasks(), start, at_once=2, tell=lambda task, error: told.append(error))
    assert slots == [0, 1, 0, 1] and len(told) == 4
    assert sorted(errors.values()) == ["", "", "", "its process was lost (division by zero): see x.err"]


STUB = """
import json, pathlib, signal, sys, time
arguments = dict(x.removeprefix("--").partition("=")[::2] for x in sys.argv[2:])
folder = pathlib.Path(arguments["workdir"])
if sys.argv[1] == "evaluate":
    folder.joinpath("results.json").write_text(json.dumps({"step": 7, "deblur_nerf": {"PSNR": 21.5, "SSIM": 0.5}}))
elif arguments["config"] == "broken":
    sys.exit("error: config.num_steps is -1, expected more")
else:
    (folder / "checkpoints" / "7").mkdir(parents=True, exist_ok=True)
    if arguments["config"] == "slow" and not (folder / "stopped").exists():
        signal.signal(signal.SIGTERM, lambda *_: (folder.joinpath("stopped").touch(), sys.exit(130)))
        (folder / "begun").touch()
        time.sleep(60)
"""


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A package bags_jax of commands that end at once, for the processes of the tasks."""
    package = tmp_path / "stub" / "bags_jax"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(STUB)
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'bags_jax')!r})")  # for the tasks themselves
    return str(package.parent)


def test_a_task_trains_scores_and_is_not_scored_again(stub, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", stub)
    monkeypatch.chdir(tmp_path)
    task, broken = (sweep.Task(name, (), 0, str(tmp_path / name)) for name in ("custom", "broken"))
    assert task() == "" and task.is_scored()
    results = tmp_path / "custom" / "results.json"
    before = results.stat().st_mtime_ns
    assert task() == "" and results.stat().st_mtime_ns == before
    (tmp_path / "custom" / "checkpoints" / "8").mkdir()  # trained on
    assert not task.is_scored()
    assert broken() == "config.num_steps is -1, expected more"
    table = sweep.write_table([task, broken], {broken: "bad"}, tmp_path)
    rows = list(csv.reader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert rows[1:] == [["custom", "", "0", "7", "21.5", "0.5", "", ""], ["broken", "", "0", "", "", "", "", "bad"]]
    assert "| custom |" in table


def test_preempted_task_stops_its_training_and_goes_on(stub, tmp_path, monkeypatch):
    """As submitit does it: the signal comes while the task waits for its command."""
    monkeypatch.setenv("PYTHONPATH", stub)
    monkeypatch.chdir(tmp_path)
    task, delayed = sweep.Task("slow", (), 0, str(tmp_path / "slow")), []
    before = signal.signal(signal.SIGALRM, lambda *_: delayed.append(task.checkpoint([])))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sweep, "run_python", wait_and_ring(sweep.run_python, tmp_path / "slow" / "begun"))
            assert "exit code 130" in task()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "slow" / "stopped").exists() and delayed[0].function == task
    assert task() == "" and task.is_scored()


def wait_and_ring(run, path):
    """`run`, with SIGALRM once a file is there."""

    def ring():
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGALRM)

    def run_and_ring(*arguments):
        threading.Thread(target=ring, daemon=True).start()
        return run(*arguments)

    return run_and_ring


def test_sweep_under_the_local_executor(stub, tmp_path, monkeypatch, capsys):
    """The command itself, with commands of tasks that end at once: a broken configuration is named, the others run."""
    monkeypatch.setenv("PYTHONPATH", stub)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.chdir(tmp_path)  # else Python finds the commands in the folder of the repository first
    arguments = [
        "--config=procedural:motion,smoke",
        "--config=broken",
        f"--workdir={tmp_path / 'sweep'}",
        "--at_once=2",
    ]
    monkeypatch.setattr(sys, "argv", ["bags-jax", "sweep", *arguments])
    code = run_with_own_flags(main, "bags_jax.cli.sweep")
    out, err = capsys.readouterr()
    assert code == 2 and "1 of 2 tasks failed, the first: broken,seed=0: " in err, out + err
    assert "2 tasks, 2 at once" in out and "procedural-motion,smoke,seed=0: done" in out
    rows = list(csv.reader((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()))
    assert [row[3] for row in rows] == ["step", "7", ""]
    assert not (tmp_path / "sweep" / ".lock").exists()


def test_slurm_tasks_of_an_earlier_call_are_awaited(tmp_path, monkeypatch):
    import submitit

    submitted = []

    class Executor:
        def __init__(self, folder, cluster, slurm_max_num_timeout):
            assert cluster == "slurm"

        def update_parameters(self, **parameters):
            assert parameters["timeout_min"] == 60 and parameters["slurm_array_parallelism"] == 4

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, task):
            submitted.append(task.name)
            return type("New", (), {"job_id": f"9_{len(submitted)}"})

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(
        submitit,
        "SlurmJob",
        lambda folder, job_id: type("Old", (), {"job_id": job_id, "done": lambda _: job_id == "8_0"})(),
    )
    tasks = make_tasks()
    (tmp_path / "jobs.json").write_text(json.dumps({tasks[0].name: "8_0", tasks[1].name: "8_1"}))
    start, at_once = sweep.make_slurm(tmp_path, tasks, at_once=0, hours=1.0, parameters={})
    assert at_once == 4 and submitted == [tasks[0].name, tasks[2].name, tasks[3].name]
    assert [start(task, 0).job_id for task in tasks] == ["9_1", "8_1", "9_2", "9_3"]
    assert json.loads((tmp_path / "jobs.json").read_text())[tasks[1].name] == "8_1"
