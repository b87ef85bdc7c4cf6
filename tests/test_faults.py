"""A short run of the faults while training (`make faults` is the long one), and a run that is read while it is written."""

import pathlib
import threading

import pytest
from faults import FAULTS, NUM_STEPS, make_config, run_faults

from bags_jax.errors import UserError
from bags_jax.run import open_run
from bags_jax.training import train


@pytest.mark.slow
@pytest.mark.parametrize("num, faults", [(3, ("kill", "kill in a file", "disk full")), (10, FAULTS)])
def test_runs_with_faults_equal_the_one_without(num, faults, tmp_path):
    sessions = run_faults(num, seed=7, place=tmp_path, faults=faults)
    assert not [session for session in sessions if session.problem], sessions
    assert sum(session.fired for session in sessions) == num


@pytest.mark.slow
def test_a_run_is_read_while_it_is_written(tmp_path):
    """Every look finds a whole checkpoint of the training, or none yet."""
    steps, is_over = [], threading.Event()

    def look():
        while not is_over.is_set():
            try:
                steps.append(int(open_run(tmp_path).state.step))
            except UserError as error:
                assert not steps and "no checkpoint" in str(error) or "no run" in str(error), error

    reader = threading.Thread(target=look)
    config = make_config()
    config.checkpoint_every = config.log_every = config.density.every = 2
    reader.start()
    try:
        train(config, tmp_path)
    finally:
        is_over.set()
        reader.join()
    assert steps == sorted(steps) and int(open_run(tmp_path).state.step) == NUM_STEPS
    assert pathlib.Path(tmp_path / "checkpoints").is_dir()


def test_failures_would_be_seen(tmp_path, monkeypatch):
    import faults

    monkeypatch.setattr(faults, "read_result", lambda workdir: str(workdir))
    monkeypatch.setattr(faults, "start", lambda fault, seed, workdir, *_: _end(faults, fault, workdir))
    (session,) = run_faults(1, seed=0, place=tmp_path, faults=("kill",))
    assert session.problem == "the run does not equal the one without faults"
    for code, fault in ((0, "kill"), (1, "disk full"), (1, "SIGINT")):
        assert faults.find_problem(faults.Session(fault, code, True, ""), "").startswith("exit code"), fault
    assert faults.find_problem(faults.Session("SIGTERM", 130, True, ""), "Traceback (most") == "traceback"


def _end(faults, fault, workdir):
    (workdir / "checkpoints" / str(NUM_STEPS)).mkdir(parents=True, exist_ok=True)
    return faults.Session(fault, 0, fault != "none", "measured 1.0 10")
