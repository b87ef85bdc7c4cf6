"""Client of the process of pycolmap. `process.py` says why pycolmap has a process of its own."""

import atexit
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from bags_jax.errors import UserError

PROCESS_FILE = pathlib.Path(__file__).with_name("process.py")
TIMEOUT_S = 120.0  # time limit of a request, beyond the work_s of its caller
_LOCK = threading.Lock()  # one request at a time


def call(
    operation: str, *arguments: Any, work_s: float = 0.0, report: Callable[[int], None] = lambda count: None
) -> Any:
    """Runs a function of process.py in the process of pycolmap and returns its result.

    Args:
      operation: name of the function.
      arguments: plain data: numbers, strings, tuples, lists and NumPy arrays.
      work_s: time, in seconds, that the work may take beyond TIMEOUT_S.
      report: receives the progress of an operation that tells its progress.
    Raises:
      RuntimeError: pycolmap raised an error, crashed, or took too long; the message is one line.
      UserError: pycolmap cannot be imported.
    """
    with _LOCK:
        is_new = not start.cache_info().currsize
        # An old process may have been killed since its last answer: try once more. A new process dies of the request.
        for is_last_try in (is_new, True):
            try:
                value, kind, problem = _exchange((operation, arguments), TIMEOUT_S + work_s, report)
                break
            except EOFError as error:
                if is_last_try:
                    raise RuntimeError(str(error)) from error
    if kind in ("ImportError", "ModuleNotFoundError"):
        raise UserError(
            f"pycolmap cannot be imported ({problem}): install it again (pip install --force-reinstall pycolmap)"
        )
    if kind:
        raise RuntimeError(problem)
    return value


def _exchange(
    request: tuple[str, tuple[Any, ...]], timeout_s: float, report: Callable[[int], None]
) -> tuple[Any, str, str]:
    """Sends a request and waits for the answer.

    Raises:
      EOFError: the process died before it answered.
      RuntimeError: the process did not answer in time and was killed.
    """
    process = start()
    assert process.stdin and process.stdout
    # Killing the process ends any read and write of its pipes, on every platform.
    timer = threading.Timer(timeout_s, process.kill)
    timer.daemon = True
    end = time.monotonic() + timeout_s
    timer.start()
    try:
        pickle.dump(request, process.stdin, protocol=5)
        process.stdin.flush()
        while (answer := pickle.load(process.stdout))[1] == "progress":
            report(answer[0])
        return answer
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        code = stop(process)
        if time.monotonic() >= end:
            raise RuntimeError(f"pycolmap did not finish within {timeout_s:.3g} s") from error
        raise EOFError(f"pycolmap crashed, exit code {code}") from error
    except BaseException:  # Ctrl-C: a late answer would be read as the answer to the next request
        stop(process)
        raise
    finally:
        timer.cancel()


@functools.cache
def start() -> subprocess.Popen:
    """Starts the process of pycolmap; returns the running one after the first call."""
    # A plain script, because multiprocessing would run the caller's main module again. -P keeps bags_jax/sfm out of its
    # sys.path. start_new_session: Ctrl-C must reach the caller only.
    process = subprocess.Popen(
        [sys.executable, "-P", str(PROCESS_FILE), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(stop, process)
    return process


def stop(process: subprocess.Popen) -> int:
    """Kills a process of pycolmap, so that the next request starts a new one. Returns its exit code."""
    start.cache_clear()
    process.kill()
    process.communicate()  # closes the pipes
    return process.returncode
