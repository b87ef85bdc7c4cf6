"""Translates the PTX of a kernel to C++: each instruction calls the function of its name in ptx.h.

`mul.wide.s32 %rd5, %r2, 12;` becomes `set(rd5, mul_wide<s32>(r2, 12ll));`. This file knows how PTX is written,
ptx.h knows what instructions do. An instruction that ptx.h lacks does not compile.
"""

import hashlib
import re

CPP_TYPES = {"pred": "bool", "b16": "b16", "b32": "b32", "b64": "b64", "f32": "f32"}  # of registers
TYPE = re.compile(r"pred|[bsuf](?:8|16|32|64)")
SPECIAL = re.compile(r"%((?:tid|n?ctaid)\.[xy])")  # registers


def _split(text: str) -> list[str]:
    """Splits operands. Operands in braces are one."""
    return [x.strip() for x in re.findall(r"(?:\{[^}]*\}|[^,{])+", text) if x.strip()]


def _value(text: str) -> str:
    """Returns the C++ of a register, a constant, a name or an address."""
    if text.startswith("["):
        return " + ".join(_value(x.strip()) for x in text.strip("[]").split("+"))
    if number := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", text):
        return f"bits<f32>(b32(0x{number[1]}))"
    if re.fullmatch(r"-?\d+", text):
        return f"{text}ll"
    if special := SPECIAL.fullmatch(text):
        return f"{special[1].replace('.', '_')}()"
    return text.replace("%", "_").replace("$", "")  # _f32 is a register, f32 a type


def _call(opcode: str, *operands: str) -> str:
    parts = opcode.split(".")
    types = ", ".join(p for p in parts if TYPE.fullmatch(p))
    name = "_".join(p for p in parts if not TYPE.fullmatch(p))
    return f"{name}{f'<{types}>' if types else ''}({', '.join(operands)})"


def _move(opcode: str, operands: list[str]) -> str:
    """Returns the C++ of a load or store of one, two or four neighbouring numbers."""
    opcode = re.sub(r"\.v[24]", "", opcode)
    to_memory = opcode.startswith("st")
    registers, address = operands[::-1] if to_memory else operands
    names, size = _split(registers.strip("{}")), f"sizeof({opcode.rpartition('.')[2]})"
    lines = [f"aligned({_value(address)}, {len(names)} * {size})"]
    for i, register in enumerate(names):
        place, register = f"{_value(address)} + {i} * {size}", _value(register)
        lines.append(_call(opcode, place, register) if to_memory else f"set({register}, {_call(opcode, place)})")
    return "; ".join(lines)


def _statement(opcode: str, operands: list[str]) -> str:
    operation = opcode.partition(".")[0]
    if operation in ("ld", "st"):
        return _move(opcode, operands)
    if operation == "bra":
        return f"goto {_value(operands[0])}"
    if operation == "ret":
        return "return"
    if opcode in ("bar.sync", "bar.warp.sync"):  # without a result
        return _call(opcode, *map(_value, operands))
    if operands[0].startswith("{"):
        parts = map(_value, _split(operands[0].strip("{}")))
        return f"unpack({_value(operands[1])}, {', '.join(parts)})"
    if operands[-1].startswith("{"):
        return f"set({_value(operands[0])}, pack({', '.join(map(_value, _split(operands[1].strip('{}'))))}))"
    result, *inputs = operands
    result, _, flag = result.partition("|")  # `%r1|%p1`: p1 is whether the source lane is in range
    return f"set({_value(result)}, {_call(opcode, *map(_value, [*([flag] if flag else []), *inputs]))})"


def _line(line: str) -> str:
    """Returns the C++ of one line of a kernel."""
    if registers := re.fullmatch(r"\.reg \.(\w+)\s+(%\w+)(?:<(\d+)>)?;", line):
        kind, name, count = registers.groups()
        names = [f"{name}{i}" for i in range(int(count))] if count else [name]
        return f"{CPP_TYPES[kind]} {', '.join(map(_value, names))};"
    if line in ("{", "}"):
        return line
    if label := re.fullmatch(r"([$\w]+):", line):
        return f"{_value(label[1])}:;"
    found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*?)\s*;", line)
    assert found, f"unknown PTX: {line}"
    negated, condition, opcode, operands = found.groups()
    guard = f"if ({negated}{_value(condition)}) " if condition else ""
    return f"{guard}{{ {_statement(opcode, _split(operands))}; }}"


def _declared(text: str, space: str) -> list[tuple[str, int, int]]:
    """Returns names, offsets and sizes of the variables in a space, in bytes."""
    found, offset = [], 0
    for align, kind, name, count in re.findall(rf"\.{space}(?: \.align (\d+))? \.(\w+) ([\w$]+)(?:\[(\d+)\])?", text):
        size = int(kind[1:]) // 8
        step, size = int(align or size), size * int(count or 1)
        offset = -(-offset // step) * step
        found.append((name, offset, size))
        offset += size
    return found


def translate(ptx: str) -> str:
    """Returns the C++ of the only kernel of a text. It registers itself with the emulator and needs ptx.h before it."""
    head, _, rest = re.sub(r"//.*", "", ptx).partition(".entry ")
    name, _, rest = rest.partition("(")
    parameters, _, rest = rest.partition(")")
    body = rest[rest.index("{") + 1 :]
    shared, given = _declared(head + body, "shared"), _declared(parameters, "param")
    constants = [f"constexpr b64 {_value(variable)} = {offset};" for variable, offset, _ in shared + given]
    lines = [line.strip() for line in body[: body.rindex("}")].splitlines()]
    code = [_line(line) for line in lines if line and not line.startswith((".shared", ".pragma"))]
    sizes = [sum(declared[-1][1:]) if declared else 0 for declared in (given, shared)]
    threads = re.search(r"\.maxntid (\d+)", rest)
    space = f"kernel_{hashlib.sha256(ptx.encode()).hexdigest()[:16]}"
    known = (
        f'emulator::add({{"{name}", run, {sizes[0]}, {sizes[1]}, {threads[1] if threads else 1024}}}, R"PTX({ptx})PTX")'
    )
    head = [f"namespace {space} {{", *constants, "static void run() {"]
    return "\n".join([*head, *code, "}", f"static const bool known = {known};", "}"])
