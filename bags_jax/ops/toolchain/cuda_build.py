"""From CUDA source to the PTX that the package ships: `python -m bags_jax.ops.toolchain.cuda_build`, needs nvcc.

Users need no compiler: the driver translates PTX for the GPU that is there. Every file says which source it is from, and
tests/test_cuda_build.py fails when that is no longer the source beside it.
"""

import hashlib
import pathlib
import re
import shutil
import subprocess
import tempfile

import numpy as np

from bags_jax.ops.limits import CHANNELS, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, STRIDES

TOOLCHAIN = pathlib.Path(__file__).parent
# Name of each PTX file: what it is compiled for.
PROGRAMS = {
    "binning": {},
    **{f"blend_{num}": {"CHANNELS": num} for num in CHANNELS},
    **{f"blur_{stride}": {"STRIDE": stride} for stride in STRIDES},
}
PTX_VERSION = "8.3"  # the oldest that has what nvcc uses; nvcc writes its own, which drivers older than nvcc refuse
NVCC = ("nvcc", "-ptx", "-O3", "-std=c++17", "-arch=compute_80", "-fmad=false")


def defines(program: str) -> list[str]:
    """Macros of a program: the limits of blending, as float32, and what it is compiled for."""
    limits = {"MIN_ALPHA": MIN_ALPHA, "MAX_ALPHA": MAX_ALPHA, "MIN_TRANSMITTANCE": MIN_TRANSMITTANCE}
    macros = [f"-D{name}={np.float32(value):.9g}f" for name, value in limits.items()]
    return macros + [f"-D{name}={number}" for name, number in PROGRAMS[program].items()]


def source(program: str) -> pathlib.Path:
    """The file that a program is compiled from."""
    name = program.partition("_")[0]
    return TOOLCHAIN.parent / ("blur" if name == "blur" else "rasterize") / "cuda" / f"{name}.cu"


def output(program: str) -> pathlib.Path:
    """The PTX file of a program, beside its source."""
    return source(program).parent / "ptx" / f"{program}.ptx"


def fingerprint(program: str) -> str:
    """Hash of all that a program's PTX depends on, but for the compiler."""
    text = "\n".join([(TOOLCHAIN / "device.cuh").read_text(), source(program).read_text(), *NVCC, *defines(program)])
    return hashlib.sha256(text.encode()).hexdigest()


def nvcc_version() -> str:
    """Release of the nvcc on the path; "" if there is none."""
    if not shutil.which("nvcc"):
        return ""
    told = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", told)
    return found[1] if found else ""


def compile_ptx(program: str) -> str:
    """PTX of a program, with two lines on top that say what it is from.

    Raises:
      RuntimeError: nvcc does not like the source.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "out.ptx")
        command = [*NVCC, f"-I{TOOLCHAIN}", *defines(program), str(source(program)), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nvcc failed on {source(program)}:\n{done.stderr}")
        ptx = out.read_text()
    body = ptx[ptx.index("\n.version") + 1 :]  # without the compiler's own header
    body = re.sub(r"^\.version .*", f".version {PTX_VERSION}", body)
    return f"// source {fingerprint(program)}\n// nvcc {nvcc_version()}\n{body}"


def stamps(ptx: str) -> tuple[str, str]:
    """Fingerprint of the source and release of nvcc that a shipped PTX is from."""
    first, second = ptx.splitlines()[:2]
    return first.removeprefix("// source "), second.removeprefix("// nvcc ")


def main() -> None:
    """Writes all PTX files."""
    for program in PROGRAMS:
        path = output(program)
        path.write_text(compile_ptx(program))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
