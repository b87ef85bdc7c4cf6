"""Static costs of the compiled CUDA kernels: registers, spills, instructions of the main loops.

  python tests/kernel_costs.py --write    writes golden/kernel_costs.json; needs ptxas and nvdisasm (make gpu-check)

The main loop is the innermost loop with the exponential. One iteration is one Gaussian at the 64 (backward 128) pixels
of a patch for a blend, four taps of 32 kernels for a blur.
"""

import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

GOLDEN = pathlib.Path(__file__).parent / "golden" / "kernel_costs.json"
ARCH = "sm_90"


def find_tool(name: str) -> str | None:
    """Finds a program of the CUDA toolkit: on the path, or in NVIDIA's wheels."""
    wheels = sorted(path for folder in sys.path for path in pathlib.Path(folder).glob(f"nvidia/*/bin/{name}"))
    return shutil.which(name) or (str(wheels[0]) if wheels else None)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def version(tool: str) -> str:
    """Returns the release of a tool."""
    found = re.search(r"V([\d.]+)", _run(tool, "--version"))
    return found[1] if found else "unknown"


def _loops(code: str) -> list[list[str]]:
    """Returns the instructions of each loop of a function, from the target of a backward branch to the branch."""
    labels, where, instructions = {}, None, []
    for line in code.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            where = label[1]
        elif instruction := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line):
            if where:
                labels[where], where = len(instructions), None
            instructions.append(instruction[2])
    ends = [(i, re.search(r"BRA.*`\((\.L_\w+)\)", text)) for i, text in enumerate(instructions)]
    spans = [(labels.get(found[1], i + 1), i) for i, found in ends if found]
    return [instructions[start : end + 1] for start, end in spans if start <= end]


def measure(ptx: pathlib.Path) -> dict[str, dict[str, int]]:
    """Measures each kernel of a PTX file; `main_loop` only with nvdisasm."""
    ptxas, nvdisasm = find_tool("ptxas"), find_tool("nvdisasm")
    assert ptxas, "no ptxas"
    with tempfile.TemporaryDirectory() as folder:
        binary = str(pathlib.Path(folder, "kernels.cubin"))
        report = _run(ptxas, "-v", "-O3", f"-arch={ARCH}", str(ptx), "-o", binary)
        code = _run(nvdisasm, "-c", binary) if nvdisasm else ""
    costs = {}
    for name, text in re.findall(
        r"Compiling entry function '(\w+)'(.*?bytes cmem|.*?registers[^\n]*)", report, re.DOTALL
    ):
        spills = [int(x) for x in re.findall(r"(\d+) bytes spill", text)]
        shared, used = re.search(r"(\d+) bytes smem", text), re.search(r"Used (\d+) registers", text)
        assert used
        costs[name] = {
            "registers": int(used[1]),
            "spilled_bytes": sum(spills),
            "shared_bytes": int(shared[1]) if shared else 0,
        }
    for section in re.split(r"(?=^\s*\.section\s+\.text\.)", code, flags=re.MULTILINE):
        name = re.match(r"\s*\.section\s+\.text\.(\w+)", section)
        exponential = [loop for loop in _loops(section) if any("MUFU.EX2" in text for text in loop)]
        if name and exponential:
            costs[name[1]]["main_loop"] = min(map(len, exponential))
    return costs


@functools.cache
def table() -> dict:
    """Returns the saved table."""
    return json.loads(GOLDEN.read_text())


def write() -> None:
    """Writes the table."""
    from bags_jax.ops.toolchain import cuda_build

    ptxas = find_tool("ptxas")
    assert ptxas and find_tool("nvdisasm"), "needs ptxas and nvdisasm: make gpu-check installs them"
    programs = {
        name: {"source": cuda_build.fingerprint(name), "kernels": measure(cuda_build.ptx_path(name))}
        for name in cuda_build.PROGRAMS
    }
    GOLDEN.write_text(json.dumps({"arch": ARCH, "ptxas": version(ptxas), "programs": programs}, indent=1) + "\n")
    print(f"wrote {GOLDEN}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/kernel_costs.py --write")
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    write()
