"""The shipped CUDA kernels: PTX from the current source, no register spills, short loops, and the launcher."""

import functools
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import kernel_costs
import pytest

from bags_jax.ops.backends import choose
from bags_jax.ops.blur.cuda import binding as blur_cuda
from bags_jax.ops.limits import COLORS, TILE
from bags_jax.ops.rasterize.cuda import binning, blend
from bags_jax.ops.ssim.cuda import binding as ssim_cuda
from bags_jax.ops.toolchain import cuda_build, cuda_launch

PROGRAMS = tuple(cuda_build.PROGRAMS)
BLENDS = [name for name in PROGRAMS if name.startswith("blend")]
PATCHES = 2  # patches of a tile, backward
MAX_FORWARD = 28  # instructions of a warp per pixel of a lane and Gaussian
MAX_REGISTERS = {"blur_3": 150, "blur_4": 176}  # a thread holds 9 or 16 px of three colours; 128 for other programs
MAX_BLUR = {1: (30, 45), 2: (44, 58)}  # by stride: instructions per tap, forward and backward
TAPS = 4  # per iteration of the loop; blur.cu has the same number
MAX_BACKWARD = {1: 450, 3: 450, 4: 450, 8: 560}  # by channels: instructions per Gaussian and tile, both patches touched
FETCH_AND_SCATTER = 25  # of these outside the main loop, estimated


@pytest.mark.parametrize("program", PROGRAMS)
def test_shipped_ptx_is_from_this_source(program):
    source, _ = cuda_build.stamps(cuda_build.ptx_path(program).read_text())
    assert source == cuda_build.fingerprint(program), (
        "the source has changed: run python -m bags_jax.ops.toolchain.cuda_build"
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_compiling_again_gives_the_shipped_ptx(program):
    shipped = cuda_build.ptx_path(program).read_text()
    _, version = cuda_build.stamps(shipped)
    here = cuda_build.nvcc_version()
    if here != version:
        pytest.skip(f"the PTX is from nvcc {version}, here is {f'nvcc {here}' if here else 'none'}")
    assert cuda_build.compile_ptx(program) == shipped, "run python -m bags_jax.ops.toolchain.cuda_build"


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_kernel_spills(program):
    row = kernel_costs.table()["programs"][program]
    assert row["source"] == cuda_build.fingerprint(program), (
        "measured with another source: python tests/kernel_costs.py --write"
    )
    for name, costs in row["kernels"].items():
        assert costs["spilled_bytes"] == 0 and costs["registers"] <= MAX_REGISTERS.get(program, 128), name
        assert costs["shared_bytes"] < 48 * 1024, name


@pytest.mark.parametrize("program", BLENDS)
def test_main_loops_are_short(program):
    kernels, channels = kernel_costs.table()["programs"][program]["kernels"], cuda_build.PROGRAMS[program]["CHANNELS"]
    pixels = TILE**2 / blend.forward_threads(channels)
    assert kernels["blend_forward"]["main_loop"] / pixels <= MAX_FORWARD
    assert kernels["blend_backward"]["main_loop"] * PATCHES + FETCH_AND_SCATTER <= MAX_BACKWARD[channels]


@pytest.mark.parametrize("stride", MAX_BLUR)
def test_loops_over_taps_are_short(stride):
    kernels = kernel_costs.table()["programs"][f"blur_{stride}"]["kernels"]
    for name, most in zip(("filter_rows", "logit_gradients"), MAX_BLUR[stride], strict=True):
        assert kernels[name]["main_loop"] / TAPS <= most, name


@pytest.mark.parametrize("program", PROGRAMS)
def test_measuring_again_gives_the_table(program):
    ptxas = kernel_costs.find_tool("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas: registers and spills are not measured again (make gpu-check installs it)")
    expected = kernel_costs.table()["programs"][program]["kernels"]
    measured = kernel_costs.measure(cuda_build.ptx_path(program))
    assert measured.keys() == expected.keys()
    for name, costs in measured.items():
        assert costs["spilled_bytes"] == 0, name
        for key in costs:  # other releases of ptxas allocate and schedule slightly differently
            assert abs(costs[key] - expected[name][key]) <= 8 + 0.1 * expected[name][key], (name, key)


def constant(program: str, name: str) -> int:
    found = re.search(rf"constexpr int {name} = (\d+);", cuda_build.source(program).read_text())
    assert found, f"no {name} in {cuda_build.source(program)}"
    return int(found[1])


def test_python_and_cuda_have_the_same_constants():
    assert {f"-DTILE={TILE}", f"-DCOLORS={COLORS}"} <= set(cuda_build.defines("blur_1"))
    assert constant("binning", "BLOCK") == binning.BLOCK
    assert constant("binning", "SCAN_BLOCK") == binning.SCAN_BLOCK
    assert constant("blend_1", "GEOMETRY") == blend.GEOMETRY
    assert constant("blur_1", "THREADS") == blur_cuda.THREADS
    assert constant("ssim", "PATCH") == ssim_cuda.PATCH
    assert PATCHES * 32 == blend.BACKWARD_THREADS


@pytest.mark.parametrize("program", BLENDS)
def test_blocks_have_the_threads_they_are_compiled_for(program):
    threads = re.findall(r"\.maxntid (\d+)", cuda_build.ptx_path(program).read_text())
    channels = cuda_build.PROGRAMS[program]["CHANNELS"]
    assert list(map(int, threads)) == [blend.forward_threads(channels), blend.BACKWARD_THREADS]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_call_carries_one_kernel(program):
    """In a version of PTX that drivers older than the compiler know."""
    for name in kernel_costs.table()["programs"][program]["kernels"]:
        text = cuda_launch.ptx(program, name)
        assert re.findall(r"\.entry (\w+)", text) == [name] and text.count("\n.version ") == 1
        assert f"\n.version {cuda_build.PTX_VERSION}\n" in text and text.rstrip().endswith("}")
        assert text.splitlines()[0].startswith("// source ")  # launcher.cc identifies a text by this line


def test_launcher_builds_once(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("no g++: the launcher cannot be compiled")
    library = cuda_launch.build_launcher(tmp_path)
    written = library.stat().st_mtime_ns
    assert cuda_launch.build_launcher(tmp_path).stat().st_mtime_ns == written
    assert [p.name for p in tmp_path.iterdir()] == [library.name]


# In its own process: no other test must find this driver.
LAUNCH = """
import ctypes, sys
driver = ctypes.CDLL(sys.argv[1])
print([driver.launch_on(gpu, text) for text in (b"// one\\n", b"// two\\n") for gpu in (0, 1, 1, 0)])
print(driver.count_loads(), driver.count_launches())
"""


def test_launcher_loads_kernels_on_the_gpu_of_their_stream(tmp_path):
    """Once on each of two GPUs, although the first one is always current."""
    if not shutil.which("g++"):
        pytest.skip("no g++: the launcher cannot be compiled")
    driver = tmp_path / "libcuda.so.1"
    folders = [f"-I{path}" for path in (jax.ffi.include_dir(), cuda_build.TOOLCHAIN)]
    source = str(pathlib.Path(__file__).parents[1] / "tools" / "ptx_emulator" / "fake_driver.cc")
    named = ["-fPIC", "-shared", f"-Wl,-soname,{driver.name}"]
    subprocess.run(["g++", "-std=c++17", "-w", *named, *folders, source, "-o", str(driver), "-ldl"], check=True)
    done = subprocess.run([sys.executable, "-c", LAUNCH, str(driver)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str([1] * 8), "4 8"]


def test_a_full_gpu_is_probed_again(monkeypatch):
    client = types.SimpleNamespace(platform_version="cuda 13000")
    gpu = types.SimpleNamespace(platform="gpu", client=client, compute_capability="9.0", device_kind="a GPU")
    answers = [RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 16 bytes."), None]

    def probe(route):
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    monkeypatch.setattr(cuda_launch, "_probe", probe)
    find_route = functools.cache(cuda_launch.find_route.__wrapped__)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        find_route()
    assert find_route() == find_route() == cuda_launch.Found(cuda_launch.XLA, "") and not answers


def test_without_a_gpu_cuda_is_refused():
    if not cuda_launch.find_problem():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        choose("rasterize", "cuda")
