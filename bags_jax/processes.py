"""Several processes that train one scene: they join, compare what they were given, watch each other, and leave together.

JAX's own service connects them (jax.distributed); this file adds no protocol, only keys in its key-value store. Process 0 runs
the service and writes all files. A process that ends early, or stops answering, ends the others: a step needs all of them.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import tqdm

from bags_jax import parallel
from bags_jax.errors import UserError, escape
from bags_jax.interruption import AgreedInterruption

JOIN_LIMIT = 300  # seconds until all processes must have joined
SILENCE_LIMIT = 30.0  # seconds after which a process that does not answer counts as dead
PERIOD = 1.0  # seconds between two signs of life
LAST_WORDS = 6.0  # seconds that process 0 waits for the others: its end is the end of the service
KEYS = "bags_jax/"
# JAX's C++ prints FATAL to stderr and then aborts the process when its service is gone. Lines with a word of NOISE are dropped.
FATAL, NOISE = b"Terminating process because the JAX distributed service", (b"coordination_service", b"add_port.cc")
COLLECTIVES = ("gloo", "nccl", "collective", "coordination")  # in the error of a step that lacks a process


@contextlib.contextmanager
def join(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, limit: int = JOIN_LIMIT
) -> Iterator[None]:
    """Joins the processes that train one scene for the block. Does nothing where there is one process.

    Must come before JAX makes its first array. Without arguments the processes are those that SLURM, Open MPI, Kubernetes or a
    TPU pod has started.

    Args:
      coordinator: HOST:PORT of process 0, at which it will listen.
      num_processes: how many there are.
      process_id: number of this one, from 0 on.
      limit: seconds until all must be there.
    Raises:
      UserError: the arguments do not fit each other, or the processes cannot be found or joined.
    """
    found = check_arguments(coordinator, num_processes, process_id) or _find_cluster(limit)
    if found is None:
        yield
        return
    _connect(*found, limit=limit)
    watch = Watch(*found[:3])
    try:
        parallel.count_devices(0, 0)  # the same number in each process, or one line
        yield
    except AgreedInterruption:
        watch.finish()
        raise
    except BaseException as error:
        watch.leave(error)
        raise
    watch.finish()


def check_arguments(coordinator: str, num_processes: int, process_id: int) -> tuple[str, int, int, dict] | None:
    """The arguments of `join` where all are given; None where none is.

    Raises:
      UserError: some are missing or out of range.
    """
    given = {"coordinator": bool(coordinator), "num_processes": num_processes > 0, "process_id": process_id >= 0}
    if not any(given.values()):
        return None
    if missing := [name for name, is_given in given.items() if not is_given]:
        raise UserError(f"--{missing[0]} is missing: --coordinator, --num_processes and --process_id belong together")
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"--coordinator={coordinator} came, expected HOST:PORT of process 0, such as node1:5000")
    if process_id >= num_processes:
        raise UserError(
            f"--process_id={process_id} came, expected 0 to {num_processes - 1}: the number of this process"
        )
    return coordinator, num_processes, process_id, {"cluster_detection_method": "deactivate"}


def _find_cluster(limit: int) -> tuple[str, int, int, dict] | None:
    """Coordinator, number of processes, number of this one and options for JAX, where a cluster has started several."""
    # Private: jax.distributed.initialize would join at once, and take one device even where it is alone.
    from jax._src.clusters import ClusterEnv

    try:
        kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method and kind.is_env_present()]
        if not kinds or (num := kinds[0].get_process_count()) < 2:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = kinds[0].get_coordinator_address(timeout_secs=limit, override_coordinator_port=port)
        return address, num, kinds[0].get_process_id(), _local_devices()
    except (RuntimeError, ValueError, LookupError, OSError, AttributeError) as error:
        raise UserError(
            f"the processes of this cluster job cannot be found ({' '.join(str(error).split())}): give --coordinator, "
            "--num_processes and --process_id"
        ) from error


def _local_devices() -> dict:
    """Options for JAX: the devices of this process. Under SLURM JAX takes one by the number of the task on its host.

    That is wrong where SLURM shows a task its own devices alone, or where it is the only one on its host.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    is_only_task = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    num = len(visible.split(",")) if visible else 0
    return {"local_device_ids": list(range(num))} if num == 1 or (num and is_only_task) else {}


def _connect(address: str, num: int, number: int, options: dict, *, limit: int) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM; see Interruption
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _watch_stderr(lambda: _end(f"process 0 at {address} has ended; {_ADVICE}"))
    line = (
        f"not all of {num} processes have joined at {address} within {limit} s: start them all, with the same address"
    )
    timer = threading.Timer(limit, _end, [line])
    timer.daemon = True
    timer.start()
    try:
        # JAX aborts the process at its own limits: ours come first, with one line.
        jax.distributed.initialize(
            address, num, number, initialization_timeout=2 * limit + 60, heartbeat_timeout_seconds=120, **options
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"process {number} of {num} cannot join at {address} ({_first_line(error)}): choose another port or host"
        ) from error
    finally:
        timer.cancel()


_ADVICE = "the same command goes on from the last checkpoint"


class Watch:
    """Tells the other processes that this one lives, and ends it when one of them does not."""

    def __init__(self, address: str, num: int, number: int):
        from jax._src import distributed  # the key-value store has no public name

        self._client: Any = distributed.global_state.client
        self._address, self._num, self._number = address, num, number
        self._answered = time.monotonic()
        # Last sign of life of each process, and when it came.
        self._beats: dict[int, tuple[str, float]] = dict.fromkeys(range(num), ("", self._answered))
        self._left: dict[int, str] = {}
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._judge)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits until all processes are done, and parts from them."""
        self._put("left", "")
        while len(self._left) < self._num:
            time.sleep(0.1)
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        jax.distributed.shutdown()

    def leave(self, error: BaseException) -> None:
        """Tells the others why this process ends. It then ends without JAX's barrier, which the others will not reach."""
        if not isinstance(error, UserError) and any(word in str(error).lower() for word in COLLECTIVES):
            time.sleep(SILENCE_LIMIT + 2 * LAST_WORDS)  # _judge will find who has ended, and ends this process
        self._is_over.set()
        reason = str(error) if isinstance(error, UserError) else _first_line(error)
        self._say_goodbye(reason)
        code = 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        atexit.register(os._exit, code)

    def _say_goodbye(self, reason: str) -> None:
        saying = threading.Thread(target=self._try_to_put, args=("left", reason), daemon=True)
        saying.start()
        saying.join(LAST_WORDS / 2)  # the service may be gone, or hang
        stop = time.monotonic() + LAST_WORDS * (self._number == 0)
        while time.monotonic() < stop and len(self._left) < self._num:
            time.sleep(0.1)

    def _put(self, kind: str, value: str) -> None:
        self._client.key_value_set(f"{KEYS}{kind}/{self._number}", value, allow_overwrite=True)

    def _try_to_put(self, kind: str, value: str) -> None:
        with contextlib.suppress(Exception):
            self._put(kind, value)

    def _beat(self) -> None:
        count = 0
        while not self._is_over.wait(PERIOD):
            count += 1
            with contextlib.suppress(Exception):  # the service does not answer: _judge counts the seconds
                self._put("alive", str(count))
                self._read(dict(self._client.key_value_dir_get(KEYS)), now=time.monotonic())

    def _read(self, rows: dict[str, str], *, now: float) -> None:
        for key, value in rows.items():
            kind, _, number = key.removeprefix(KEYS).partition("/")
            if kind == "left":
                self._left[int(number)] = value
            elif kind == "alive" and self._beats[int(number)][0] != value:
                self._beats[int(number)] = value, now
        self._answered = now

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._is_over.wait(PERIOD):
            before, gap = (now := time.monotonic()), now - before
            if gap > 5 * PERIOD:  # this process was suspended, perhaps all were: count anew
                self._answered = now
                self._beats = {number: (value, now) for number, (value, _) in self._beats.items()}
            if line := self._find_loss(now):
                self._say_goodbye(f"process {self._number} has ended with it")
                _end(line)

    def _find_loss(self, now: float) -> str:
        """One line about a process without which training cannot go on; "": there is none."""
        for number, reason in sorted(self._left.items()):
            if reason and number != self._number:
                return f"process {number} has ended: {reason}"
        if now - self._answered > SILENCE_LIMIT:
            return f"process 0 at {self._address} has not answered for {SILENCE_LIMIT:.0f} s; {_ADVICE}"
        for number, (_, when) in self._beats.items():
            if number not in self._left and now - when > SILENCE_LIMIT:
                return f"process {number} has not answered for {SILENCE_LIMIT:.0f} s; {_ADVICE}"
        return ""


def check_equal(what: str, facts: dict[str, Any]) -> None:
    """Checks that all processes were given the same.

    Args:
      what: in front of the names in a message.
      facts: plain values by name.
    Raises:
      UserError: in all processes, with the first value that differs.
    """
    if parallel.is_alone():
        return
    own = {name: repr(value) for name, value in facts.items()}
    all_facts = [json.loads(text) for text in parallel.gather_text(json.dumps(own))]
    for number, theirs in enumerate(all_facts):
        for name, value in all_facts[0].items():
            if theirs.get(name) != value:
                raise UserError(
                    f"{what}{name} is {theirs.get(name)} in process {number} and {value} in process 0: give all processes the same"
                )


def _end(line: str) -> NoReturn:
    """Ends this process at once, whatever its other threads wait for. Exit code 2."""
    with contextlib.suppress(Exception):
        tqdm.tqdm.write(f"error: {escape(line)}", file=sys.stderr)
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(2)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _watch_stderr(on_fatal: Callable[[], NoReturn]) -> None:
    """Calls `on_fatal` instead of the abort, with a stack trace, of JAX's client when its service is gone.

    JAX has no callback that works from Python. What C++ prints goes through a pipe; Python prints to the terminal as before.
    """
    sys.stderr.flush()
    own, (read, write) = os.dup(2), os.pipe()
    os.dup2(write, 2)
    os.close(write)
    sys.stderr = os.fdopen(own, "w", buffering=1, errors="backslashreplace")

    def forward() -> None:
        with os.fdopen(read, "rb") as lines:
            for line in lines:
                if FATAL in line:
                    on_fatal()
                if not any(noise in line for noise in NOISE):
                    os.write(own, line)

    threading.Thread(target=forward, daemon=True).start()
    global _HANDLER  # ctypes frees a callback that nobody holds
    _HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_wait_before_abort)
    ctypes.CDLL(None).signal(signal.SIGABRT, _HANDLER)


_HANDLER: Any = None


def _wait_before_abort(_number: int) -> None:
    """Gives the thread that reads stderr the time to find out why this process aborts."""
    time.sleep(1.0)
