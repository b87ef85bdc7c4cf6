"""Compiled libraries: one process builds, killed builds leave nothing, and strangers' libraries are not loaded."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bags_jax.errors import UserError
from bags_jax.ops.toolchain.library_cache import build_library, is_built

ROOT = pathlib.Path(__file__).parents[1]
BUILD = """
import pathlib, sys, types
for name, path in (("bags_jax", "bags_jax"), ("bags_jax.ops", "bags_jax/ops")):  # without JAX: quick
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from bags_jax.ops.toolchain.library_cache import build_library
print(build_library(pathlib.Path(sys.argv[1]), sys.argv[2:], timeout_s=60))
"""


@pytest.fixture
def compiler(tmp_path):
    """A compiler that says that it has begun, waits for a file named go, and writes the library."""
    program = tmp_path / "cc"
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    program.write_text(
        f'#!/bin/sh\nfor last; do :; done\necho half > "$last"\necho x >> {tmp_path}/begun\n{wait}\necho whole > "$last"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def library(tmp_path):
    (tmp_path / "native").mkdir(mode=0o700)
    return tmp_path / "native" / "x.so"


def start(library, compiler):
    command = [sys.executable, "-c", BUILD, str(library), str(compiler)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)


def wait_for(is_true):
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_while_it_builds(tmp_path, library, compiler):
    """The compiler ends its work, or is ended with the group; a second process waits that long."""
    process = start(library, compiler)
    wait_for((tmp_path / "begun").exists)
    process.kill()
    process.wait()
    second = start(library, compiler)
    time.sleep(0.3)
    assert second.poll() is None and not library.exists()
    (tmp_path / "go").touch()
    second.wait()
    assert library.read_text() == "whole\n" and list(library.parent.iterdir()) == [library]
    assert (tmp_path / "begun").read_text() == "x\n"  # the second one did not compile


@pytest.mark.slow
def test_ended_while_it_builds(tmp_path, library, compiler):
    process = start(library, compiler)
    wait_for((tmp_path / "begun").exists)
    os.kill(process.pid, signal.SIGINT)  # a Ctrl-C
    process.wait()
    wait_for(lambda: not list(library.parent.iterdir()))


def test_leftovers_of_a_lost_machine_are_removed(tmp_path, library, compiler):
    (tmp_path / "go").touch()
    (library.parent / ".building_1").mkdir()
    (library.parent / ".building_1" / "library.so").touch()
    (library.parent / ".building_2.so").touch()
    assert build_library(library, [str(compiler)], timeout_s=60) == "" and is_built(library)
    assert list(library.parent.iterdir()) == [library]


def test_a_compiler_that_hangs_is_ended(library, compiler):
    with pytest.raises(subprocess.TimeoutExpired):
        build_library(library, [str(compiler)], timeout_s=0.3)
    wait_for(lambda: not list(library.parent.iterdir()))


def test_libraries_that_others_may_write_are_built_again(tmp_path, library, compiler):
    (tmp_path / "go").touch()
    library.write_text("planted")
    assert is_built(library)
    library.chmod(0o666)
    assert not is_built(library)
    assert build_library(library, [str(compiler)], timeout_s=60) == "" and library.read_text() == "whole\n"
    assert is_built(library)
    library.parent.chmod(0o777)
    assert not is_built(library) and library.parent.stat().st_mode & 0o777 == 0o755 and not library.exists()
    (tmp_path / "own.so").write_text("own")
    library.symlink_to(tmp_path / "own.so")
    assert not is_built(library)


def test_folders_and_libraries_of_others_are_refused(tmp_path, library, monkeypatch):
    library.write_text("planted")
    library.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(library, 12345, -1)
        assert not is_built(library)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(UserError, match="belongs to another user .*: set XDG_CACHE_HOME to a folder of your own"):
        is_built(library)
