"""One training at a time works in a directory, and a killed one leaves it free."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from bags_jax.errors import UserError
from bags_jax.workdir_lock import LOCK_FILE, lock_workdir

ROOT = pathlib.Path(__file__).parents[1]
HOLD = """
import sys, time, types
sys.modules["bags_jax"] = types.ModuleType("bags_jax")  # without JAX: quick
sys.modules["bags_jax"].__path__ = ["bags_jax"]
from bags_jax.workdir_lock import lock_workdir
with lock_workdir(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(workdir):
    """A process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"held\n"
    return process


def test_a_second_training_is_refused(tmp_path):
    process = hold(tmp_path)
    try:
        expected = rf"is in use by another training \(process {process.pid} on .*\): wait until it is done"
        with pytest.raises(UserError, match=expected) as caught, lock_workdir(tmp_path):
            pass
        assert "\n" not in str(caught.value)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_leaves_the_directory_free(tmp_path, number):
    process = hold(tmp_path)
    os.kill(process.pid, number)
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with lock_workdir(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_block_that_writes_nothing_leaves_no_trace(tmp_path):
    with lock_workdir(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).exists()
    assert not list(tmp_path.iterdir())
    with lock_workdir(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"]


def test_directories_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / LOCK_FILE).symlink_to(tmp_path / "file")
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "link"):
        with pytest.raises(UserError, match="cannot be written"), lock_workdir(place):
            pass
    assert not (tmp_path / "file").read_bytes()
