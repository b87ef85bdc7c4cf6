"""Fuzzing of all readers: every damaged input ends in a sane result or in one line, within a time and a memory limit.

  make fuzz                                   2000 cases, a table, and the seeds of those that failed
  .venv/bin/python tests/fuzz.py --cases=60
  .venv/bin/python tests/fuzz.py --kind=llff --seed=17    one case again, with its traceback

A process of its own runs the cases, because a damaged file may hang or crash it; this program starts it again then.
"""

import argparse
import collections
import json
import pathlib
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

HERE = pathlib.Path(__file__).parent
KINDS = ("colmap binary", "colmap text", "colmap lens", "llff", "blender", "nerfstudio", "images", "masks", "ply")
KINDS += ("configuration", "workdir", "checkpoint")
LIMIT_S = 30.0  # of a case, beyond which it hangs; most take less than 0.1 s
LIMIT_BYTES = 3 << 30  # of address space, beyond what the process has before its first case


# --- the process that reads


def serve() -> None:
    """Reads `kind seed` lines, answers each with a line of JSON."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as place:
        run_case("configuration", 0, pathlib.Path(place))  # imports and compiles before the limit
        size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT_BYTES, size + LIMIT_BYTES))
        for line in sys.stdin:
            kind, _, seed = line.strip().rpartition(" ")
            answer = run_case(kind, int(seed), pathlib.Path(place))
            print(json.dumps(answer), flush=True)


def run_case(kind: str, seed: int, place: pathlib.Path) -> dict[str, str]:
    """One case. ending: ok (a sane result), refused (one line), else the failure."""
    from fuzz_readers import TookTooLong, read_one

    from bags_jax.errors import UserError

    what = ["?"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", append=True)  # the filters of the package hold
        try:
            read_one(kind, seed, place, what)
            ending, message = "ok", ""
        except UserError as error:
            ending, message = "refused", str(error)
            if "\n" in message or len(message) > 2000:
                ending = "not one line"
        except (Exception, TookTooLong) as error:  # noqa: BLE001  whatever comes is the failure to report
            ending, message = type(error).__name__, traceback.format_exc()
    noise = [str(x.message) for x in caught if issubclass(x.category, RuntimeWarning | UserWarning)]
    if noise and ending in ("ok", "refused"):
        ending, message = "warning", noise[0]
    for path in place.iterdir():
        if path.name.startswith("case"):
            shutil.rmtree(path, ignore_errors=True)
    return {"ending": ending, "message": message[-3000:], "what": what[0][:300]}


# --- the program


class Reader:
    """The process that reads, started again after it hung or crashed."""

    def __init__(self, root: pathlib.Path):
        self._root, self._process = root, None

    def read(self, kind: str, seed: int) -> dict[str, str]:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        process.stdin.write(f"{kind} {seed}\n")
        process.stdin.flush()
        limit = LIMIT_S + (60 if self._process is None else 0)
        self._process = process
        ready, _, _ = select.select([process.stdout], [], [], limit)
        line = process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.stop()
        ending = "hang" if not ready else f"crash {process.returncode}"
        return {"ending": ending, "message": "", "what": "?"}

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, str(HERE / "fuzz.py"), "--serve"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self._root, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None


def run_cases(num_cases: int, *, first_seed: int = 0, root: pathlib.Path = HERE.parent) -> list[dict[str, str]]:
    """Runs cases, the kinds in turn. Returns a row for each: kind, seed, ending, message, what was damaged, seconds."""
    reader, rows = Reader(root), []
    try:
        for number in range(num_cases):
            kind, seed = KINDS[number % len(KINDS)], first_seed + number // len(KINDS)
            start = time.monotonic()
            answer = reader.read(kind, seed)
            rows.append({"kind": kind, "seed": str(seed), **answer, "s": f"{time.monotonic() - start:.2f}"})
    finally:
        reader.stop()
    return rows


def failures(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if row["ending"] not in ("ok", "refused")]


def print_table(rows: list[dict[str, str]]) -> None:
    print(f"{'format':16}{'cases':>7}{'sane':>7}{'one line':>10}{'failed':>8}")
    for kind in (*KINDS, "all"):
        mine = [row for row in rows if kind in (row["kind"], "all")]
        counts = collections.Counter(row["ending"] for row in mine)
        print(f"{kind:16}{len(mine):7}{counts['ok']:7}{counts['refused']:10}{len(failures(mine)):8}")
    times = sorted(float(row["s"]) for row in rows)
    print(f"median {times[len(times) // 2]:.2f} s, longest {times[-1]:.1f} s")
    for row in failures(rows):
        last = (row["message"].strip().splitlines() or [""])[-1]
        print(f"  --kind='{row['kind']}' --seed={row['seed']}: {row['ending']}: {last[:160]} ({row['what'][:120]})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--rows", help="write all rows into this file, as JSON lines")
    options = parser.parse_args()
    random.seed(0)
    if options.serve:
        serve()
    elif options.kind:
        with tempfile.TemporaryDirectory(prefix="fuzz_") as place:
            answer = run_case(options.kind, options.seed, pathlib.Path(place))
        print(*(f"{name}: {text}" for name, text in answer.items()), sep="\n")
    else:
        rows = run_cases(options.cases, first_seed=options.first_seed, root=pathlib.Path.cwd())
        if options.rows:
            pathlib.Path(options.rows).write_text("".join(json.dumps(row) + "\n" for row in rows))
        print_table(rows)
        sys.exit(bool(failures(rows)))


if __name__ == "__main__":
    main()
