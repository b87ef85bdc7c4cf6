"""The process of pycolmap: killed, crashed, hanging, without pycolmap, or printing."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent import futures

import numpy as np
import pytest
from captures import FOCAL, NAMES, H, W, assert_refused, draw, expect_pixels, write_colmap, write_photos

from bags_jax.data import load_scene
from bags_jax.data.lens import Lens, undistort
from bags_jax.errors import UserError
from bags_jax.sfm import client

RADIAL = Lens("SIMPLE_RADIAL", W, H, (FOCAL, W / 2, H / 2, 0.1))


@pytest.fixture
def capture_folder(tmp_path):
    write_photos(tmp_path / "images")
    write_colmap(tmp_path)
    return tmp_path


@pytest.fixture
def use_script(tmp_path, monkeypatch):
    """Replaces the script of the process of pycolmap."""

    def use(code):
        client.stop(client.start())
        (tmp_path / "process.py").write_text(code)
        monkeypatch.setattr(client, "PROCESS_FILE", tmp_path / "process.py")

    yield use
    client.stop(client.start())


def test_one_other_process_serves_all_loads(capture_folder):
    load_scene(str(capture_folder))
    process = client.start()
    load_scene(str(capture_folder))
    assert client.start() is process and process.poll() is None
    assert "pycolmap" not in sys.modules


@pytest.mark.parametrize("is_reaped", [False, True])
def test_killed_between_two_loads(capture_folder, is_reaped):
    first = load_scene(str(capture_folder))
    process = client.start()
    os.kill(process.pid, signal.SIGKILL)
    if is_reaped:
        process.wait()
    second = load_scene(str(capture_folder))
    assert second.names == NAMES and client.start() is not process
    np.testing.assert_array_equal(first.viewmats, second.viewmats)


DEATHS = {
    "at once": "",
    "crash": "import os, pickle, sys; pickle.load(sys.stdin.buffer); os.abort()",
    "half an answer": "import pickle, sys; sys.stdout.buffer.write(pickle.dumps((list(range(99)), '', ''))[:50])",
    "no answer": "print('hello', flush=True)",
}


@pytest.mark.parametrize("death", DEATHS)
def test_death_during_a_request(capture_folder, use_script, death):
    use_script(DEATHS[death])
    assert_refused(capture_folder, r"is damaged \(pycolmap crashed, exit code -?\d+\)")
    with pytest.raises(UserError, match="cannot undistort the lens .*pycolmap crashed"):
        undistort(draw(expect_pixels()[0]), RADIAL)


def test_a_process_that_hangs_is_killed(capture_folder, use_script, monkeypatch):
    use_script("import time; time.sleep(60)")
    monkeypatch.setattr(client, "TIMEOUT_S", 0.3)
    assert_refused(capture_folder, "is damaged .*did not finish within 0.3")


def test_missing_pycolmap(capture_folder, use_script):
    code = client.PROCESS_FILE.read_text()
    use_script("import sys; sys.modules['pycolmap'] = None\n" + code)
    assert_refused(capture_folder, "pycolmap cannot be imported .*: install it again")


def test_prints_do_not_reach_the_answers(capture_folder, use_script):
    code = client.PROCESS_FILE.read_text()
    loud = "    os.write(1, b'from C'); print('from Python', flush=True)\n    reconstruction ="
    assert code.count("    reconstruction =") == 1
    use_script(code.replace("    reconstruction =", loud))
    assert load_scene(str(capture_folder)).names == NAMES


def test_a_native_crash_ends_the_process(capture_folder, use_script):
    code = client.PROCESS_FILE.read_text()
    crash = "    load_pycolmap(); import ctypes; ctypes.string_at(0)\n    reconstruction ="
    use_script(code.replace("    reconstruction =", crash))
    assert_refused(capture_folder, f"pycolmap crashed, exit code -{int(signal.SIGSEGV)}")


def test_threads_share_the_process():
    images = [draw(pixels) for pixels in expect_pixels()]
    expected = [undistort(image, RADIAL)[0] for image in images]
    with futures.ThreadPoolExecutor(4) as pool:
        for (image, _), alone in zip(pool.map(lambda image: undistort(image, RADIAL), images), expected):
            np.testing.assert_array_equal(image, alone)


def test_process_exits_with_its_caller():
    """Its input stays open here: in the middle of its work the process does not read it."""
    read, write = os.pipe()
    code = """import os, subprocess, sys, time
print(subprocess.Popen([sys.executable, "-P", sys.argv[1], str(os.getpid())]).pid, flush=True)
time.sleep(60)"""
    try:
        caller = [sys.executable, "-c", code, client.PROCESS_FILE]
        with subprocess.Popen(caller, stdin=read, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            pid = int(process.stdout.readline())
            assert is_alive(pid)
            process.kill()
        end = time.monotonic() + 20
        while is_alive(pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert not is_alive(pid)
    finally:
        os.close(read)
        os.close(write)


def is_alive(pid):
    """True if a process runs. A zombie does not run."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
