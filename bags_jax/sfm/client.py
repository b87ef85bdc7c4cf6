"""Asks pycolmap, which lives in a process of its own: pycolmap_process.py says why."""

import atexit
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time
from typing import Any

from bags_jax.errors import UserError

PROCESS_FILE = pathlib.Path(__file__).with_name("process.py")
LIMIT_S = 120.0  # until an answer of pycolmap, beyond the time that its work may take
_ONE_AT_A_TIME = threading.Lock()


def ask(operation: str, *arguments: Any, work_s: float = 0.0) -> Any:
    """The result of an operation of pycolmap_process.py, whose work may take so many seconds.

    Raises:
      RuntimeError: in one line, what pycolmap objected to, or that it crashed or took too long.
      UserError: there is no pycolmap that can be imported.
    """
    with _ONE_AT_A_TIME:
        is_new = not start.cache_info().currsize
        # An old process may have been killed since its last answer; if a new one dies, the request is why.
        for is_last_try in (is_new, True):
            try:
                value, kind, problem = _exchange((operation, arguments), LIMIT_S + work_s)
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


def _exchange(request: tuple[str, tuple[Any, ...]], limit_s: float) -> tuple[Any, str, str]:
    """Sends a request and waits for the answer.

    Raises:
      EOFError: the process died before it answered.
      RuntimeError: it did not answer in time, so it was killed.
    """
    process = start()
    assert process.stdin and process.stdout
    # Killing it ends any read and write of its pipes, on every platform.
    timer = threading.Timer(limit_s, process.kill)
    timer.daemon = True
    end = time.monotonic() + limit_s
    timer.start()
    try:
        pickle.dump(request, process.stdin, protocol=5)
        process.stdin.flush()
        return pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        code = stop(process)
        if time.monotonic() >= end:
            raise RuntimeError(f"pycolmap did not finish within {limit_s:.3g} s") from error
        raise EOFError(f"pycolmap crashed, exit code {code}") from error
    except BaseException:  # Ctrl-C: the late answer would be taken for the next request's
        stop(process)
        raise
    finally:
        timer.cancel()


@functools.cache
def start() -> subprocess.Popen:
    """The process of pycolmap, one for the session."""
    # A plain script: multiprocessing would run the caller's main module again. -P: the modules beside it stay unseen.
    # A session of its own: Ctrl-C is meant for the caller.
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
    """Ends a process of pycolmap, dead or alive, so that the next request starts a new one; returns its exit code."""
    start.cache_clear()
    process.kill()
    process.communicate()  # closes the pipes, whatever is left in them
    return process.returncode
