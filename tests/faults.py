"""Faults while training: kills, signals, disks that fill, clocks that jump. The run that goes on equals one without faults.

  make faults                                    120 faults, a table
  .venv/bin/python tests/faults.py --faults=10 --seed=3 --only=kill

A training with blur model, refined poses and density control under way is started again and again in one directory, each time with
a fault, until it is done. Then the SHA-256 of all arrays of its last checkpoint must be those of a training without faults, and its
log must have the same lines.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 48
# Signals come at a random time; the others at a random one of the accesses to the files of the run.
SIGNALS = {"kill": "SIGKILL", "SIGTERM": "SIGTERM", "SIGINT": "SIGINT", "SIGINT twice": "SIGINT"}
IN_FILES = ("kill in a file", "disk full", "read-only")
FAULTS = (*SIGNALS, *IN_FILES, "clock jumps")
SHARE = 0.7  # of a training, in which its fault comes: a session that goes on has less before it
LIMIT_S = 600.0
CAME = "<the fault>"  # printed when it comes


@dataclasses.dataclass
class Session:
    """How one process of a training ended."""

    fault: str
    code: int  # negative: killed by a signal
    fired: bool  # False: the training ended before its fault came
    line: str  # the last that it printed
    problem: str = ""  # what should not have been


# --- the process that trains


def make_config() -> Any:
    """One image scale; everything that training changes is under way from early on."""
    from configs import procedural

    config = procedural.get_config("motion,smoke")
    config.num_steps, config.num_devices, config.views_per_step = NUM_STEPS, 1, 1
    config.stages.scales, config.stages.stops = (1.0,), (1.0,)
    config.blur.kernel_sizes, config.blur.strides, config.blur.warmup = (3,), (1,), 0.0
    config.blur.use_rgbd = False  # compiles faster
    config.optim.poses_start, config.density.start, config.density.every = 0.0, 0.0, 6
    config.log_every, config.checkpoint_every, config.pictures = 3, 6, False
    return config


def train_with(fault: str, seed: int, workdir: pathlib.Path, *, seconds: float, accesses: int) -> None:
    """Trains in a directory, with a fault. Prints how long a training without faults took, and its accesses to files.

    Args:
      seconds, accesses: those of a training without faults.
    """
    from bags_jax import dispatch
    from bags_jax.cli.launch import launch
    from bags_jax.training import train

    draw, run = random.Random(seed), dispatch.Dispatcher.run
    number = draw.randrange(int(SHARE * accesses)) if accesses else 0
    count = _watch_files(fault if fault in IN_FILES else "", number, workdir)
    if fault == "clock jumps":
        now = time.time
        time.time = lambda: now() + draw.choice((-1e6, -3600.0, 0.0, 3600.0, 1e6))
    begun, delay = [time.monotonic()], draw.uniform(0.0, SHARE * seconds)

    def begin(self, is_interrupted):  # the seconds count from the first step
        begun[0] = time.monotonic()
        if fault in SIGNALS:
            threading.Thread(target=_send, args=(fault, delay), daemon=True).start()
        return run(self, is_interrupted)

    def train_and_measure():
        train(make_config(), workdir)
        print(f"measured {time.monotonic() - begun[0]:.2f} {count[0]}", flush=True)

    dispatch.Dispatcher.run = begin
    sys.argv = sys.argv[:1]
    launch(train_and_measure, resumes=True)


def _send(fault: str, delay: float) -> None:
    time.sleep(delay)
    print(CAME, flush=True)
    os.kill(os.getpid(), getattr(signal, SIGNALS[fault]))
    if fault == "SIGINT twice":
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)


def _watch_files(fault: str, number: int, workdir: pathlib.Path) -> list[int]:
    """Counts the accesses of Python to files of the run. At the n-th comes the fault; a disk goes on to fail. "": none comes."""
    import errno

    count, told, inside = [0], [], str(workdir)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def look(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if not str(arguments[0]).startswith(inside):
            return
        is_read = event == "open" and not (arguments[2] & writes)
        count[0] += 1
        if not fault or count[0] < number:
            return
        if fault == "kill in a file":
            print(CAME, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if is_read or event in ("os.remove", "os.rmdir"):
            return
        if not told:
            told.append(True)
            print(CAME, flush=True)
        code = errno.ENOSPC if fault == "disk full" else errno.EROFS
        raise OSError(code, os.strerror(code), str(arguments[0]))

    sys.addaudithook(look)
    return count


# --- the program


def start(fault: str, seed: int, workdir: pathlib.Path, measured: tuple[str, str] = ("0", "0")) -> Session:
    """One session of a training: to its end, or to its fault. `measured`: seconds and accesses of one without faults."""
    command = [sys.executable, __file__, "--train", fault, "--seed", str(seed), "--workdir", str(workdir)]
    command += ["--measured", *measured]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    flags = environment.get("XLA_FLAGS", "").split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir.parent / "programs"))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=environment, timeout=LIMIT_S, check=False, **pipes)
    lines = [line.split("\r")[-1].strip() for line in done.stdout.splitlines()]
    fired = CAME in done.stdout or fault == "clock jumps"
    lines = [line for line in lines if line and CAME not in line] or [""]
    session = Session(fault, done.returncode, fired, lines[-1])
    session.problem = find_problem(session, done.stdout)
    return session


def find_problem(session: Session, output: str) -> str:
    """What a session should not have done; "" if it behaved."""
    if "Traceback" in output:
        return "traceback"
    if not session.fired or session.fault == "clock jumps":
        return "" if session.code == 0 else f"exit code {session.code}"
    if session.fault.startswith("kill"):
        return "" if session.code == -signal.SIGKILL else f"exit code {session.code}"
    expected = (2,) if session.fault in ("disk full", "read-only") else (0, 130, 143, -2, -15)
    return "" if session.code in (*expected, 0) else f"exit code {session.code}, expected {expected}"


def read_result(workdir: pathlib.Path) -> tuple[dict, list]:
    """SHA-256 of every array of the last checkpoint; steps and Gaussians of the log (its losses are means since the last line)."""
    hashes = json.loads((workdir / "checkpoints" / str(NUM_STEPS) / "sha256.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "num_gaussians")
    return hashes, [[row.get(key) for key in keys] for row in rows]


def run_faults(num_faults: int, *, seed: int, place: pathlib.Path, faults: tuple[str, ...] = FAULTS) -> list[Session]:
    """Runs trainings with faults until so many have come. Returns all sessions; those that went wrong have a problem."""
    start("none", 0, place / "compiled")
    straight = start("none", 0, place / "straight")
    assert straight.code == 0 and not straight.problem, straight
    _, seconds, accesses = straight.line.split()
    expected = read_result(place / "straight")
    sessions: list[Session] = []
    number = count = 0
    while count < num_faults:
        workdir = place / f"run_{number}"
        for attempt in range(1000):
            fault = faults[(count + attempt) % len(faults)] if count < num_faults else "none"
            session = start(fault, 1000 * seed + len(sessions), workdir, (seconds, accesses))
            sessions.append(session)
            count += session.fired
            print(f"{count:4} {number:3} {fault:15} {session.problem or 'ok'}", file=sys.stderr, flush=True)
            if session.code == 0 and (workdir / "checkpoints" / str(NUM_STEPS)).is_dir():
                break
        if read_result(workdir) != expected:
            sessions[-1].problem = "the run does not equal the one without faults"
        number += 1
    return sessions


def print_table(sessions: list[Session]) -> None:
    """Prints fault, tries, faults that came before the end, and those that went as they should."""
    print(f"{'fault':18}{'tries':>7}{'came':>7}{'passed':>8}")
    tries = collections.Counter(session.fault for session in sessions)
    for fault in tries:
        mine = [session for session in sessions if session.fault == fault]
        print(f"{fault:18}{len(mine):7}{sum(x.fired for x in mine):7}{sum(not x.problem for x in mine):8}")
    for session in sessions:
        if session.problem:
            print(f"  {session.fault}: {session.problem}: {session.line[:200]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, action="append", help="One kind; may be repeated.")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--workdir", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--measured", nargs=2, default=("0", "0"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        seconds, accesses = float(options.measured[0]), int(options.measured[1])
        train_with(options.train, options.seed, options.workdir, seconds=seconds, accesses=accesses)
        return
    with tempfile.TemporaryDirectory(prefix="faults_") as place:
        faults = tuple(options.only or FAULTS)
        sessions = run_faults(options.faults, seed=options.seed, place=pathlib.Path(place), faults=faults)
    print_table(sessions)
    sys.exit(any(session.problem for session in sessions))


if __name__ == "__main__":
    main()
