"""Two processes train as one process with two devices does, stop at the same step, and end together."""

import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import distributed

from bags_jax import parallel, processes
from bags_jax.checkpoint import Checkpoints
from bags_jax.config import read_config
from bags_jax.errors import UserError
from bags_jax.job import make_job
from bags_jax.run import open_run
from bags_jax.shared_job import describe_scene
from bags_jax.training import train
from configs import procedural

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 6
CONFIG = f"""
from configs import procedural

def get_config(arg=""):
    config = procedural.get_config("motion,smoke")
    config.stages.scales, config.stages.stops = (0.5,), (1.0,)
    config.blur.kernel_sizes, config.blur.strides = (3,), (1,)
    config.blur.enabled = False  # compiles faster
    config.num_steps, config.max_gaussians = {NUM_STEPS}, 512
    config.optim.quats = 0.0  # for a round Gaussian the gradient is rounding noise, which Adam enlarges to a whole step
    config.log_every, config.checkpoint_every, config.views_per_step = 1, 100, 0
    return config
"""
# `bags-jax train` that gets SIGTERM when it queues its second dispatch, if it is process 1.
INTERRUPTED = """
import os, signal, types
from jax._src import compiler  # JAX lets process 0 alone fill the cache of programs; here the other one does, too
compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0, client=None))
from bags_jax import parallel
count_raised, calls = parallel.count_raised, []

def count(is_raised, num_devices):
    calls.append(is_raised)
    if len(calls) == 2 and os.environ["SLURM_PROCID"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return count_raised(is_raised, num_devices)

parallel.count_raised = count
from bags_jax.cli import main
main.main()
"""
# What a training exchanges, without a training; then process 0 is killed.
EXCHANGE = """
import os, signal, sys, time
from bags_jax import parallel, processes
from bags_jax.errors import UserError
import numpy as np

number = int(sys.argv[2])
with processes.join(sys.argv[1], 2, number):
    assert not parallel.is_alone() and parallel.is_first() == (number == 0) and parallel.count_devices(0, 0) == 2
    assert parallel.gather_text("ab" * number) == ["", "ab"] and parallel.share_text(f"of {number}") == "of 0"
    assert parallel.largest(5 + number) == 6
    assert [int(parallel.count_raised(number == 1, 2)), int(parallel.count_raised(False, 2))] == [1, 0]
    tree = {"a": np.full((3 + number, 2), number, np.float32), "b": np.zeros((4, 0)), "c": np.array([True, False])}
    shared = parallel.share_tree(tree, like=tree)
    assert shared["a"].shape == (3, 2) and not shared["a"].any() and shared["b"].shape == (4, 0)
    assert shared["c"].tolist() == [True, False] and shared["c"].dtype == bool
    for views, message in ((1, "multiple of 2 processes"), (4, "")):
        try:
            assert parallel.count_devices(0, views) == 2 and not message
        except UserError as error:
            assert message in str(error), error
    processes.check_equal("config.", {"seed": 1})
    try:
        processes.check_equal("config.", {"seed": 1, "num_steps": 100 + number})
    except UserError as error:
        print(error, flush=True)
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def run_pair(command: list[str], *, each=lambda number: [], **variables: str) -> list[tuple[int, str]]:
    """Runs a command in two processes with one device each. Returns the exit code and the output of each."""
    flags = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=2", "")
    common = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **variables}
    started = []
    for number in range(2):
        environment = {**common, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen([*command, *each(number)], env=environment, **options))
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def under_slurm() -> dict[str, str]:
    """The variables that SLURM gives to two tasks on this machine, but for the numbers of the tasks."""
    names = {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "2", "STEP_NUM_NODES": "1"}
    return {f"SLURM_{name}": value for name, value in names.items()} | {"JAX_COORDINATOR_PORT": str(find_port())}


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of a straight run of one process with two devices, and of one of two processes that was interrupted and then
    resumed by one; exit codes and outputs of the two; the steps that they saved; their rows of metrics."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "two.py").write_text(CONFIG)
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    arguments = ["train", f"--config={folder}/two.py", f"--workdir={folder}/two", f"--config.compilation_cache={cache}"]
    stopped = run_pair([sys.executable, "-c", INTERRUPTED, *arguments], **under_slurm())
    saved = Checkpoints(folder / "two", create=False).steps()
    rows = rows_of(folder / "two")
    config = runpy.run_path(str(folder / "two.py"))["get_config"]()
    for name in ("one", "two"):
        train(config, folder / name)
    return folder, stopped, saved, rows


def test_both_stop_at_the_same_step_when_one_is_interrupted(runs):
    _, stopped, saved, rows = runs
    assert [code for code, _ in stopped] == [130, 130], stopped
    assert len(saved) == 1 and 2 < saved[0] < NUM_STEPS and rows[-1]["step"] == saved[0]
    assert ["the state is saved" in output for _, output in stopped] == [False, True]  # process 1 got the signal
    assert all("interrupted: the same command continues" in output for _, output in stopped)


def test_same_loss_curve_as_one_process_with_two_devices(runs):
    folder, _, _, rows = runs
    one, two = rows_of(folder / "one"), rows_of(folder / "two")
    assert [row["step"] for row in two] == list(range(1, NUM_STEPS + 1)) and two[: len(rows)] == rows
    for a, b in zip(one, two, strict=True):
        assert a["num_gaussians"] == b["num_gaussians"] and a["num_intersections"] == b["num_intersections"]
        assert abs(a["train/total"] - b["train/total"]) < 1e-6, a["step"]


def test_process_0_alone_writes_and_one_process_opens_the_run(runs):
    folder, stopped, _, _ = runs
    assert "step/s" in stopped[0][1] and "step/s" not in stopped[1][1]
    assert json.loads((folder / "two" / "config.json").read_text())["views_per_step"] == 2
    assert not list(folder.glob("two/.lock")) and len(list(folder.glob("two/tensorboard/*"))) == 2  # of two starts
    one, two = (open_run(folder / name).state for name in ("one", "two"))
    assert int(two.step) == NUM_STEPS
    np.testing.assert_allclose(two.gaussians.means, one.gaussians.means, atol=1e-6)


def test_what_processes_exchange_and_the_end_of_one():
    """The one that is left ends with one line, although it waits for nothing."""
    address = f"127.0.0.1:{find_port()}"
    command = [sys.executable, "-c", EXCHANGE, address]
    (killed, first), (code, second) = run_pair(command, each=lambda number: [str(number)])
    differs = "config.num_steps is 101 in process 1 and 100 in process 0: give all processes the same"
    assert killed == -9 and differs in first, first
    lines = [line for line in second.splitlines() if "[Gloo]" not in line]
    ended = f"error: process 0 at {address} has ended; the same command goes on from the last checkpoint"
    assert code == 2 and lines == [differs, ended], second


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("host:1", 2, -1), "--process_id is missing"),
        (("", 2, 0), "--coordinator is missing"),
        (("host", 2, 0), "expected HOST:PORT"),
        (("host:99999", 2, 0), "expected HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2 came, expected 0 to 1"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(UserError, match=message):
        processes.check_arguments(*arguments)


def test_one_process_joins_nobody(monkeypatch):
    for name, value in {**under_slurm(), "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with processes.join():
        assert parallel.is_alone() and not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    "visible, tasks, expected",
    [("0,1,2,3", "1(x2)", [0, 1, 2, 3]), ("2", "4(x2)", [0]), ("0,1,2,3", "4(x2)", None), ("", "1", None)],
)
def test_devices_of_a_task(monkeypatch, visible, tasks, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    assert processes._local_devices().get("local_device_ids") == expected


class Service:
    """The key-value store of JAX's service."""

    def __init__(self):
        self.rows = {}

    def key_value_set(self, key, value, allow_overwrite):
        self.rows[key] = value

    def key_value_dir_get(self, prefix):
        return list(self.rows.items())


def test_losses_that_are_found(monkeypatch):
    monkeypatch.setattr(distributed.global_state, "client", service := Service())
    monkeypatch.setattr(processes.threading, "Thread", lambda **_: type("Idle", (), {"start": lambda self: None})())
    watch = processes.Watch("host:1", 3, 0)
    start, late = watch._answered, watch._answered + processes.SILENCE_LIMIT + 1
    assert watch._find_loss(start + 1) == ""
    assert watch._find_loss(late) == "process 0 at host:1 has not answered for 30 s; " + processes._ADVICE
    watch._read({"bags_jax/alive/0": "9", "bags_jax/alive/1": "8"}, now=late)
    assert watch._find_loss(late) == "process 2 has not answered for 30 s; " + processes._ADVICE
    watch._read({"bags_jax/left/2": ""}, now=late)  # it is done
    assert watch._find_loss(late) == ""
    watch._read({"bags_jax/left/1": "no space"}, now=late)
    assert watch._find_loss(late) == "process 1 has ended: no space"
    watch._try_to_put("left", "bad")
    assert service.rows == {"bags_jax/left/0": "bad"}


def test_another_capture_is_named():
    scene = make_job(read_config(procedural.get_config("motion,smoke"))).scene
    facts = describe_scene(scene)
    scene.images[1][0, 0] += 1
    scene.points[0, 0] += 1.0
    changed = [name for name, value in describe_scene(scene).items() if facts[name] != value]
    assert changed == ["the SHA-256 of the points", f"the SHA-256 of photograph {scene.names[1]}"]


def test_twin_of_pmap_is_equal_bit_for_bit():
    def step(rank, state, factor):
        turned = jnp.sin(state["full"] * factor + rank)
        return {"full": state["full"] + parallel.psum(turned), "empty": state["empty"]}, {"rank": parallel.pmax(rank)}

    def run(make):
        mapped, state = make(), {"full": jnp.arange(1000.0) / 7, "empty": jnp.zeros((4, 0, 3))}
        state = parallel.without_empty(parallel.replicate(state, 2))
        compiled = mapped.lower(parallel.ranks(2), state, jnp.float32(3)).compile(compiler_options={})
        for _ in range(3):
            state, metrics = compiled(parallel.ranks(2), state, jnp.float32(3))
        return np.asarray(state["full"]), int(metrics["rank"])

    options = {"num_args": 1, "num_devices": 2}
    expected, rank = run(lambda: parallel.parallelize(step, **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "is_alone", lambda: False)
        assert isinstance(parallel.parallelize(step, **options), parallel.AcrossProcesses)
        found, other = run(lambda: parallel.parallelize(step, **options))
    np.testing.assert_array_equal(found, expected)
    assert rank == other == 1


def test_what_process_0_does_alone_waits_for_nobody():
    """Process 0 renders pictures while it trains: what renders them may not exchange anything."""
    folder = ROOT / "bags_jax"
    files = {"programs.py", "run.py", "snapshot.py", "training_views.py", "run_report.py", "rendering.py"}
    for name in ("largest", "share_text", "share_tree", "gather_text", "count_raised", "check_equal"):
        users = {path.name for path in folder.rglob("*.py") if f" parallel.{name}(" in path.read_text()}
        assert not users & files, f"{users & files} call {name}"
