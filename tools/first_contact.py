"""First contact with a GPU: every part of the GPU path, one line each, in the order in which one part needs the other.

  python -m tools.first_contact                                                # all
  python -m tools.first_contact --only=9 --only=10 --only=12 --only=13         # how fast, and why?

Goes on after a failure; --folder gets the traceback of each failure, the table of kernels of each timed part, and summary.txt.
Without a GPU the parts that the emulator can run, run small: that tests this script. Parts:
0 machine and packages   1 JAX computes   2 the driver translates every kernel   3, 4 the two launch routes   5 lists of
intersections   6 blending against the oracle   7 gradients in a fixed order   8 blur against XLA   11 SSIM against XLA
14 projection and colour against XLA   9 rasterizer   10 plain step   12 the longest tile alone   13 step of BAGS
"""

import ctypes
import dataclasses
import functools
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.blur_model.protocol import BlurModel
from bags_jax.cli.launch import launch
from bags_jax.geometry import project
from bags_jax.ops.rasterize import buffer_size
from bags_jax.ops.rasterize.cuda.binning import bin_views
from bags_jax.ops.rasterize.cuda.blend import Image, Splats, blend_gradient, blend_views
from bags_jax.ops.toolchain import cuda_build, cuda_launch
from bags_jax.programs import compiler_options, largest_count
from bags_jax.scene.initialize import init_state, with_optimizers
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.schedule import Stage
from bags_jax.settings import Blur, Loss, Optim
from bags_jax.splatting import rasterization
from bags_jax.step import train_steps
from bags_jax.structs import Camera
from experiments.benchmarks.cases import RATE, TRAINED, make_case
from experiments.benchmarks.rasterizer import Scene, make_random_scene
from tools import kernel_comparisons as kernels
from tools.ptx_emulator import emulated

_ONLY = flags.DEFINE_multi_string("only", [], "Parts to run; all by default.")
_FOLDER = flags.DEFINE_string("folder", "first_contact", "Folder for the results.")

PACKAGES = "flax optax orbax jaxtyping ml_collections tensorboardX trimesh jinja2 cv2 scipy skimage pytest beartype gsplat torch"
ATTRIBUTES = {"registers": 4, "local": 3, "shared": 1, "threads": 0, "binary": 6}  # of cuFuncGetAttribute


def has_gpu() -> bool:
    """True where JAX runs on a GPU."""
    return jax.default_backend() == "gpu"


def ask(command: str) -> str:
    """Output of a shell command; "" if it fails."""
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False).stdout.strip()


def look_at_machine() -> str:
    """Card, driver, clocks, Python, and the packages that are missing."""
    query = "nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,memory.used --format=csv,noheader"
    missing = [name for name in PACKAGES.split() if importlib.util.find_spec(name) is None]
    found = f"compiler {shutil.which('g++') or 'missing'}"
    return f"{ask(query) or 'no card'} | Python {sys.version.split()[0]} | missing: {', '.join(missing) or 'nothing'} | {found}"


def compute() -> str:
    """A matrix product."""
    jax.block_until_ready(jax.jit(lambda a: a @ a)(jnp.ones((512, 512))))
    device = jax.devices()[0]
    return f"jax {jax.__version__} on {device.device_kind}, {device.client.platform_version[:60]!r}"


def translate_kernels() -> str:
    """The driver's compilation of every shipped kernel: registers and local memory, which would be spills."""
    if not has_gpu():
        return "skipped: no GPU"
    cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    cuda.cuCtxPushCurrent_v2(context)
    rows = []
    for program in cuda_build.PROGRAMS:
        for name in re.findall(r"\.entry (\w+)", cuda_launch.ptx_path(program).read_text()):
            module, function, start = ctypes.c_void_p(), ctypes.c_void_p(), time.time()
            code = cuda.cuModuleLoadData(ctypes.byref(module), cuda_launch.ptx(program, name).encode())
            assert code == 0, f"{program}:{name}: cuModuleLoadData returned {code}"
            assert cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()) == 0
            row = {"kernel": f"{program}:{name}", "seconds": round(time.time() - start, 2)}
            for attribute, number in ATTRIBUTES.items():
                value = ctypes.c_int()
                cuda.cuFuncGetAttribute(ctypes.byref(value), number, function)
                row[attribute] = value.value
            rows.append(row)
    cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    write("kernels.txt", "\n".join(map(str, rows)))
    spills = [row["kernel"] for row in rows if row["local"]]
    seconds = sum(row["seconds"] for row in rows)
    return f"{len(rows)} kernels in {seconds:.1f} s, code for sm_{rows[0]['binary']}, local memory: {spills or 'none'}"


def probe(route: str) -> str:
    """One launch by a route, with a repeated operand and an aliased output."""
    if not has_gpu():
        return "skipped: no GPU"
    if route == cuda_launch.FFI:
        cuda_launch.register_launcher()
    cuda_launch._probe(route)
    return "repeated operand and aliased output kept"


def time_calls(run: Callable[[], object], calls: int, name: str) -> str:
    """Wall time of a call, and on a GPU a table of its kernels."""
    run()
    run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wall = 1e3 * (time.perf_counter() - start) / calls
    if not has_gpu():
        return f"wall {wall:.3f} ms"
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
            run()
        return f"wall {wall:.3f} ms; {list_kernels(pathlib.Path(folder), 2, name)}"


def list_kernels(folder: pathlib.Path, calls: int, name: str) -> str:
    """Writes the kernels of a trace by time, ms and launches a call; returns the sums."""
    from jax.profiler import ProfileData

    times: dict[str, float] = {}
    counts: dict[str, int] = {}
    for plane in ProfileData.from_file(str(max(folder.rglob("*.xplane.pb")))).planes:
        for line in plane.lines if "GPU" in plane.name else ():
            for event in line.events if "Stream" in line.name else ():
                times[event.name] = times.get(event.name, 0.0) + event.duration_ns
                counts[event.name] = counts.get(event.name, 0) + 1
    ranked = sorted(times, key=lambda kernel: -times[kernel])
    rows = [f"{times[k] / calls / 1e6:9.4f} ms x{counts[k] / calls:6.1f} {k[:110]}" for k in ranked]
    write(f"kernels_{name}.txt", "\n".join(rows))
    print("\n".join(rows[:30]), flush=True)
    return f"{sum(times.values()) / calls / 1e6:.3f} ms on the device, {sum(counts.values()) / calls:.0f} launches"


def make_scene() -> Scene:
    """The scene of the timed parts; small without a GPU."""
    return make_random_scene(1_000_000, 1296, 840) if has_gpu() else make_random_scene(500, 64, 48)


def time_rasterizer() -> str:
    """`rasterization`, forward and all gradients."""
    scene = make_scene()
    means, quats, scales, opacities, colors, viewmats, Ks = map(jnp.asarray, scene.arrays)
    cameras = (viewmats, Ks, scene.width, scene.height)
    num = int(rasterization(means, quats, scales, opacities, colors, *cameras)[2]["num_intersections"].max())
    capacity = buffer_size(num)

    def total(means, quats, scales, opacities, colors):
        image = rasterization(means, quats, scales, opacities, colors, *cameras, max_intersections=capacity)[0]
        return jnp.sum(image**2)

    gradients = jax.jit(jax.grad(total, argnums=range(5)))
    arrays = means, quats, scales, opacities, colors
    return f"{num} intersections; {time_calls(lambda: jax.block_until_ready(gradients(*arrays)), 20, 'rasterizer')}"


def time_steps(case, num_steps: int, name: str) -> str:
    """A dispatch of training steps."""
    state, dataset, recipe = case
    recipe = dataclasses.replace(recipe, loop_length=num_steps)
    step, start = jnp.int32(0), time.time()
    lowered = jax.jit(functools.partial(train_steps, recipe=recipe), donate_argnums=1).lower(
        step, state, dataset, step, step
    )
    compiled = lowered.compile(compiler_options=compiler_options(recipe))
    seconds, memory = time.time() - start, compiled.memory_analysis()
    assert memory
    held = [jax.tree.map(jnp.copy, state), step]

    def run():
        held[0], metrics = compiled(step, held[0], dataset, held[1], held[1] + num_steps)
        assert int(metrics["ok"]) == 1, jax.device_get(metrics)
        held[1] = metrics["step"]

    said = time_calls(run, 4, name)
    return (
        f"compiled in {seconds:.0f} s, temporaries {memory.temp_size_in_bytes / 1e6:.0f} MB; {num_steps} steps: {said}"
    )


def time_plain_steps() -> str:
    """Plain steps at 600 x 400 px. XLA_FLAGS=--xla_gpu_enable_command_buffer= shows what CUDA graphs are worth."""
    return time_steps(
        make_case(*((100_000, 600, 400) if has_gpu() else (300, 48, 40))), 50 if has_gpu() else 2, "plain"
    )


def make_blur_model(kernel: int) -> BlurModel:
    """The network of the default configuration, for one view."""
    blur = Blur()
    return BlurProposalNetwork(1, (kernel,), blur.width, blur.embedding_width, blur.conv_width, blur.feature_width)


def make_bags_case(num: int, width: int, height: int):
    """A step of BAGS in the last stage of the default configuration, on a random cloud."""
    state, dataset, recipe = make_case(num, width, height)
    kernel, stride = 17, 2
    model = make_blur_model(kernel)
    optimizers = make_optimizers(Optim(**dict.fromkeys(TRAINED, RATE)), model, restart=0, num_steps=1000)
    state = with_optimizers(init_state(state.gaussians, state.alive, num_views=1, model=model), optimizers)
    view = dataclasses.replace(recipe.view, margin=kernel // 2)
    view = dataclasses.replace(view, max_intersections=buffer_size(int(1.05 * largest_count(state, dataset, view))))
    stage = Stage(0, 1000, 1.0, kernel, 0, stride=stride, margin=kernel // 2)
    recipe = dataclasses.replace(recipe, model=model, optimizers=optimizers, stage=stage, view=view, loss=Loss())
    return state, dataset, recipe


def time_bags_steps() -> str:
    """Steps of BAGS, with kernels of 17 x 17 for blocks of 2 px."""
    return time_steps(
        make_bags_case(*((100_000, 600, 400) if has_gpu() else (300, 48, 40))), 50 if has_gpu() else 2, "bags"
    )


def time_longest_tile() -> str:
    """Blending with all lists emptied but the longest, against the whole: does one tile decide?"""
    scene = make_scene()
    means, quats, scales, opacities, colors, viewmats, Ks = map(jnp.asarray, scene.arrays)
    size = {"width": scene.width, "height": scene.height}
    options = {**size, "near_plane": 0.01, "far_plane": 1e10, "eps_2d": 0.3, "antialiased": False}
    projected = jax.jit(functools.partial(project, **options))(
        means, quats, scales, opacities, Camera(viewmats[0], Ks[0])
    )
    projected = jax.tree.map(lambda x: x[None], projected)
    with emulated():
        bins = functools.partial(bin_views, **size, capacity=8_000_000 if has_gpu() else 20_000, with_slots=False)
        lists = jax.jit(bins)(projected)
        splats = Splats(projected.means_px, projected.conics, projected.opacities, colors[None])
        starts = np.asarray(lists.starts[0])
        tile = int(np.argmax(np.diff(starts)))
        one = np.where(np.arange(len(starts)) <= tile, starts[tile], starts[tile + 1]).astype(np.int32)
        alone = lists._replace(starts=jnp.asarray(one)[None])
        forward, backward = jax.jit(functools.partial(blend_views, **size)), jax.jit(blend_gradient)
        image = forward(splats, lists)
        cotangent = Image(image.colors * 0 + 1.0, image.alphas * 0 + 1.0)
        times = [_median_ms(lambda x=x: forward(splats, x)) for x in (lists, alone)]
        times += [_median_ms(lambda x=x: backward(splats, x, image, cotangent)) for x in (lists, alone)]
    lengths = np.diff(starts)
    return (
        f"longest list {lengths.max()}, mean {lengths.mean():.0f}; forward {times[0]:.3f} ms, alone {times[1]:.3f}; "
        f"backward {times[2]:.3f} ms, alone {times[3]:.3f}"
    )


def _median_ms(run: Callable[[], object]) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(20 if has_gpu() else 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "0": ("machine", look_at_machine),
    "1": ("JAX computes", compute),
    "2": ("driver translates every kernel", translate_kernels),
    "3": ("launch by XLA", functools.partial(probe, cuda_launch.XLA)),
    "4": ("launch by FFI", functools.partial(probe, cuda_launch.FFI)),
    "5": ("lists of intersections", kernels.compare_lists),
    "6": ("blending", kernels.compare_blending),
    "7": ("fixed order, twice", kernels.repeat_in_fixed_order),
    "8": ("blur", kernels.compare_blur),
    "11": ("SSIM", kernels.compare_similarity),
    "14": ("projection and colour", kernels.compare_seeing),
    "9": ("rasterizer", time_rasterizer),
    "10": ("plain steps", time_plain_steps),
    "12": ("longest tile alone", time_longest_tile),
    "13": ("steps of BAGS", time_bags_steps),
}


def write(name: str, text: str) -> None:
    """Writes a file of results."""
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n")


def main() -> None:
    """Runs the parts and prints a line for each."""
    lines = []
    for number, (name, run) in PARTS.items():
        if _ONLY.value and number not in _ONLY.value:
            continue
        start = time.time()
        try:
            outcome, said = "ok", run()
        except Exception as error:  # noqa: BLE001, the parts after it still say something
            outcome, said = "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            write(f"failure_{number}.txt", traceback.format_exc())
        lines.append(f"{outcome:6} {number:>2} {name:32} {time.time() - start:6.1f} s  {said}")
        print(lines[-1], flush=True)
    write("summary.txt", "\n".join(lines))
    if any(line.startswith("FAILED") for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    launch(main)
