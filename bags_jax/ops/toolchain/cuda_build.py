"""Compiles the CUDA sources to the shipped PTX, with nvcc: `python -m bags_jax.ops.toolchain.cuda_build`.

Users need no compiler: the driver translates PTX for their GPU. Every PTX file names the fingerprint of its source;
tests/test_cuda_build.py fails if the source beside it has another one.
"""

import hashlib
import pathlib
import re
import shutil
import subprocess
import tempfile

import numpy as np

from bags_jax.geometry import FAR_PLANE, FOV_MARGIN, LARGEST, LARGEST_PX
from bags_jax.numerics import TINY
from bags_jax.ops.limits import CHANNELS, COLORS, MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, STRIDES, TILE, WINDOW
from bags_jax.ops.toolchain.cuda_launch import kernel_folder, ptx_path
from bags_jax.spherical_harmonics import SH_C0

TOOLCHAIN = pathlib.Path(__file__).parent
# Names of the PTX files, with the macros that each is compiled with.
PROGRAMS = {
    "binning": {},
    **{f"blend_{num}": {"CHANNELS": num} for num in CHANNELS},
    **{f"blur_{stride}": {"STRIDE": stride} for stride in STRIDES},
    "see": {
        "LARGEST": LARGEST,
        "LARGEST_PX": LARGEST_PX,
        "FAR_PLANE": FAR_PLANE,
        "FOV_MARGIN": FOV_MARGIN,
        "TINY_SQUARE": TINY**2,  # squares up to this count as 0
        "SH_C0": SH_C0,
    },
    "ssim": {"WINDOW": WINDOW},
}
PTX_VERSION = (
    "8.3"  # the oldest version that has all instructions used; drivers older than nvcc refuse the version of nvcc
)
NVCC = ("nvcc", "-ptx", "-O3", "-std=c++17", "-arch=compute_80", "-fmad=false")


def defines(program: str) -> list[str]:
    """Returns the macros of a program: shared limits (floats as float32), and its own from PROGRAMS."""
    limits = {"MIN_ALPHA": MIN_ALPHA, "MAX_ALPHA": MAX_ALPHA, "MIN_TRANSMITTANCE": MIN_TRANSMITTANCE}
    numbers = {**limits, "TILE": TILE, "COLORS": COLORS, **PROGRAMS[program]}
    in_c = lambda x: f"{np.float32(x):.9g}f" if isinstance(x, float) else str(x)
    return [f"-D{name}={in_c(number)}" for name, number in numbers.items()]


def source(program: str) -> pathlib.Path:
    """Returns the source file of a program."""
    return kernel_folder(program) / f"{program.partition('_')[0]}.cu"


def fingerprint(program: str) -> str:
    """Returns a hash of everything that the PTX of a program depends on, except the compiler."""
    text = "\n".join([(TOOLCHAIN / "device.cuh").read_text(), source(program).read_text(), *NVCC, *defines(program)])
    return hashlib.sha256(text.encode()).hexdigest()


def nvcc_version() -> str:
    """Returns the release of the nvcc on the path, or ""."""
    if not shutil.which("nvcc"):
        return ""
    output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", output)
    return found[1] if found else ""


def compile_ptx(program: str) -> str:
    """Returns the PTX of a program, after two lines with the fingerprint of the source and the release of nvcc.

    Raises:
      RuntimeError: nvcc fails.
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
    """Returns the fingerprint of the source and the release of nvcc that a PTX text names."""
    first, second = ptx.splitlines()[:2]
    return first.removeprefix("// source "), second.removeprefix("// nvcc ")


def main() -> None:
    """Writes all PTX files."""
    for program in PROGRAMS:
        path = ptx_path(program)
        path.write_text(compile_ptx(program))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
