"""Counts launches and bytes of a program that XLA compiled for a GPU, from its text.

  python -m experiments.benchmarks.traffic step.hlo --largest=40

The text is that of `jax.stages.Compiled.as_text()`; tests/compile_ahead.py writes it for an H200 on any machine. Each launch
reads its operands once, but for the parts that it slices away, and writes its results; what is still in the cache, and not
read from memory, counts too. The workspaces of libraries do not count. A loop counts as often as it turns; one whose number of turns is unknown, once.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

from absl import app, flags

_LARGEST = flags.DEFINE_integer("largest", 30, "Number of launches to list, by bytes.", lower_bound=0)

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
NO_LAUNCH = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
SLICES = {"slice", "dynamic-slice", "gather"}
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*)")
HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(")
ENTRY = "ENTRY"
# Time of a launch: the larger of its own, microseconds, and that of its bytes. Bandwidths: 83 to 91 % of the data sheets', GB/s.
GPUS = {"H200": (4000.0, 1.4), "RTX 5090": (1600.0, 2.0), "RTX 4090": (920.0, 2.0), "RTX 3090": (850.0, 2.3)}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel, copy or library call, as often as the loops around it turn."""

    name: str  # of the instruction
    kind: str  # its operation; of a call also the target
    source: str  # the JAX operation that it comes from
    turns: int
    read: int  # bytes of one turn
    written: int

    @property
    def bytes(self) -> int:
        """Bytes of all turns."""
        return self.turns * (self.read + self.written)


def size_of(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, such as `(f32[3,4]{1,0}, pred[])`."""
    total = 0
    for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        size = BYTES.get(kind, 0)
        for axis in filter(None, sizes.split(",")):
            size *= int(axis)
        total += size
    return total


def launches(text: str) -> list[Launch]:
    """The launches of a compiled program, in its order.

    Raises:
      ValueError: the text is not that of a compiled program.
    """
    computations = {}
    for part in re.split(r"\n(?=\S)", text):
        if head := HEAD.match(part):
            computations[ENTRY if head[1] else head[2]] = part
    if ENTRY not in computations:
        raise ValueError("this text has no ENTRY computation, expected that of a program that XLA compiled")
    return list(_launches_of(computations, ENTRY, 1))


@dataclasses.dataclass(frozen=True)
class _Instruction:
    shape: str
    kind: str
    rest: str  # of its line, behind the opening bracket

    @property
    def operands(self) -> list[str]:
        return list(dict.fromkeys(re.findall(r"%([\w.-]+)", self.rest.split("), ")[0])))


def _instructions(text: str) -> dict[str, _Instruction]:
    found = [INSTRUCTION.match(line) for line in text.splitlines()[1:]]
    return {each[1]: _Instruction(each[2], each[3], each[4]) for each in found if each}


def _launches_of(computations: dict[str, str], name: str, turns: int) -> Iterator[Launch]:
    instructions = _instructions(computations[name])
    for own, each in instructions.items():
        if each.kind in NO_LAUNCH:
            continue
        if each.kind == "while":
            body = _named(r"body=%([\w.-]+)", each.rest)
            trips = _named(r'known_trip_count":\{"n":"(\d+)"', each.rest)
            yield from _launches_of(computations, body, turns * int(trips or 1))
            continue
        fused = _instructions(computations.get(_named(r"calls=%([\w.-]+)", each.rest), ""))
        operands = [operand for operand in each.operands if operand in instructions]
        read = sum(_read(instructions[operand].shape, i, fused) for i, operand in enumerate(operands))
        target = _named(r'custom_call_target="([^"]+)"', each.rest)
        source = _named(r'op_name="([^"]*)"', each.rest)
        written = size_of(re.sub(r"\bs8\[\d+\]", "", each.shape) if target.startswith("__cu") else each.shape)
        yield Launch(own, f"{each.kind} {target}".strip(), source, turns, read, written)


def _read(shape: str, index: int, fused: dict[str, _Instruction]) -> int:
    """Bytes that a launch reads of an operand: all, unless a fusion only slices it."""
    whole = size_of(shape)
    own = [name for name, each in fused.items() if each.kind == "parameter" and each.rest.startswith(f"{index})")]
    names, sliced = set(own), 0
    for name, each in fused.items():  # in the order of use
        if not names & set(each.operands):
            continue
        if each.kind == "bitcast":
            names.add(name)
        elif each.kind in SLICES and each.operands[0] in names and _columns(each.shape) == _columns(shape):
            sliced += size_of(each.shape)  # of rows; columns share their sectors of memory with the others
        else:
            return whole
    return min(sliced, whole) if own else whole


def _columns(shape: str) -> str:
    """Size of the last axis."""
    return _named(r"\[(?:[\d,]*,)?(\d+)\]", shape)


def _named(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def estimate_ms(rows: list[Launch], gpu: str) -> float:
    """Estimated time of these launches on one of GPUS, ms: cached operands cost less, kernels that compute cost more."""
    bandwidth, own_us = GPUS[gpu]
    return sum(each.turns * max(own_us, (each.read + each.written) / bandwidth / 1e3) for each in rows) / 1e3


def describe(rows: list[Launch], *, largest: int) -> str:
    """The sums, the estimates, and the largest launches, one a line."""
    small = sum(each.turns for each in rows if each.read + each.written < 1e6)
    total = sum(each.bytes for each in rows)
    lines = [f"{sum(each.turns for each in rows)} launches ({small} below 1 MB), {total / 1e9:.2f} GB"]
    lines.append("about " + ", ".join(f"{estimate_ms(rows, gpu):.2f} ms on an {gpu}" for gpu in GPUS))
    for each in sorted(rows, key=lambda each: -each.bytes)[:largest]:
        head = f"{each.bytes / 1e6:9.1f} MB, written {each.turns * each.written / 1e6:8.1f}"
        lines.append(f"{head}  {each.turns:4d} x {each.kind[:34]:34}  {each.name[:34]:34}  {each.source[-80:]}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    for path in arguments[1:]:
        print(describe(launches(pathlib.Path(path).read_text()), largest=_LARGEST.value))


if __name__ == "__main__":
    app.run(main)
