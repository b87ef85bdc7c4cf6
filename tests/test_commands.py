"""The programs as users call them: their files and output, and one line and exit code 2 for a mistake.

Most mistakes are made in this process, each with fresh flags, because a new process imports JAX for seconds.
"""

import functools
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import app
from commands import run_with_own_flags
from PIL import Image

import bags_jax
from bags_jax.cli.main import COMMANDS, main
from bags_jax.metrics import why_no_lpips
from bags_jax.settings import rows

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = "--config=procedural:motion,smoke"
QUICK = (SMOKE, "--config.num_devices=1", "--config.num_steps=4", "--config.max_gaussians=512")


def command(program, *arguments):
    """Runs a program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", f"experiments.{program}", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def call(monkeypatch, capfd):
    """Runs a command of bags-jax or a benchmark in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)
    app.define_help_flags()

    def call(program, *arguments):
        cache = "--config.compilation_cache=" if any("--config=" in a for a in arguments) else None
        arguments = [*arguments, *filter(None, [cache])]
        capfd.readouterr()
        is_benchmark = program.startswith("benchmarks.")
        names = [program] if is_benchmark else ["bags-jax", program]
        monkeypatch.setattr(sys, "argv", [*names, *arguments])
        benchmark = functools.partial(runpy.run_module, f"experiments.{program}", run_name="__main__", alter_sys=True)
        code = run_with_own_flags(benchmark if is_benchmark else main, f"bags_jax.cli.{program}")
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run made by the program itself, and what it said."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    cache = f"--config.compilation_cache={os.environ['JAX_COMPILATION_CACHE_DIR']}"
    done = command("train", *QUICK, cache, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done


def contents(folder):
    """Every file and its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_bar(stderr):
    """Lines of stderr, without the progress bar's."""
    lines = [line.split("\r")[-1] for line in stderr.splitlines()]
    return [line for line in lines if line.strip() and "step/s" not in line and "s/step" not in line]


def assert_refused(result, *said):
    """Exit code 2, one line, and all of `said` in it."""
    code, _, err = result
    lines = without_bar(err)
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert "Traceback" not in err
    for text in said:
        assert text in lines[0]


def refused(done, *said):
    assert_refused((done.returncode, done.stdout, done.stderr), *said)


# --- what they write -------------------------------------------------------------------------------------------------


def test_training_writes_its_folder_and_only_the_bar_to_stderr(trained):
    workdir, done = trained
    assert {"config.json", "checkpoints", "metrics.jsonl", "tensorboard"} <= {p.name for p in workdir.iterdir()}
    assert without_bar(done.stderr) == []
    for word in ("loss", "PSNR", "Gaussians", "scale 1, kernel 5", "4/4"):
        assert word in done.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["num_steps"] == 4 and config["views_per_step"] == 1


def test_evaluation_writes_results_and_prints_both_protocols(trained):
    workdir, _ = trained
    done = command("evaluate", f"--workdir={workdir}", f"--compilation_cache={os.environ['JAX_COMPILATION_CACHE_DIR']}")
    assert done.returncode == 0 and without_bar(done.stderr) == [], done.stderr
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == 4 and "deblur_nerf" in done.stdout and "gaussian_splatting" in done.stdout
    assert "sharpness gain" in done.stdout and "no_truth" in results
    if results["deblur_nerf"]["LPIPS"] is None:
        assert done.stdout.count("LPIPS needs") == 1 and why_no_lpips() in done.stdout


@pytest.mark.parametrize("path,count", [("test", 2), ("train", 4), ("spiral", 3)])
def test_rendering_writes_pictures_and_a_film(trained, call, path, count):
    workdir, _ = trained
    code, out, _ = call("render", f"--workdir={workdir}", f"--path={path}", "--frames=3", "--compilation_cache=")
    assert code in (None, 0) and f"{count} pictures" in out
    pictures = sorted((workdir / "renders" / path).glob("*.png"))
    assert len(pictures) == count
    assert all(np.asarray(Image.open(p)).shape == (24, 32, 3) for p in pictures)
    film = (workdir / "renders" / f"{path}.mp4").read_bytes()
    assert film[4:8] == b"ftyp" and ("H.264 by ffmpeg" in out) == (b"avc1" in film)


@pytest.mark.parametrize(
    "path, mode, name, count",
    [
        ("orbit", "sharp", "orbit", 3),
        ("interpolate", "depth", "interpolate_depth", 3),
        ("train", "compare", "train_compare", 4),
        ("{folder}/my path.json", "sharp", "my path", 2),
    ],
)
def test_films_along_other_paths_and_of_other_things(trained, call, tmp_path, path, mode, name, count):
    workdir, _ = trained
    pose = {"camera_to_world": np.eye(4).ravel().tolist(), "fov": 50}
    cameras = {"render_width": 30, "render_height": 20, "fps": 12, "camera_path": [pose, pose]}
    (tmp_path / "my path.json").write_text(json.dumps(cameras))
    path = path.format(folder=tmp_path)
    options = (f"--path={path}", f"--mode={mode}", "--frames=3", "--compilation_cache=")
    code, out, err = call("render", f"--workdir={workdir}", *options)
    assert code in (None, 0) and f"{count} pictures" in out and f"{count}/{count}" in err and "frame" in err
    pictures = sorted((workdir / "renders" / name).glob("*.png"))
    assert len(pictures) == count and (workdir / "renders" / f"{name}.mp4").is_file()
    if path.endswith("json"):
        assert np.asarray(Image.open(pictures[0])).shape == (20, 30, 3)


def test_export_writes_a_splat(trained, call, tmp_path):
    workdir, _ = trained
    where = (f"--workdir={workdir}", "--compilation_cache=")
    code, out, _ = call("export", *where, f"--output={tmp_path / 'scene.ply'}", "--viewer_settings")
    head = (tmp_path / "scene.ply").read_bytes()[:2000].decode("latin1")
    count = re.search(r"element vertex (\d+)", head)
    assert code in (None, 0) and count and out.startswith(f"{count[1]} Gaussians of step 4")
    assert "upright: up was" in out and "within about" in out and f"read back: {count[1]} Gaussians, 100.0 dB" in out
    assert {path.name for path in tmp_path.iterdir()} == {"scene.ply", "scene.ply.viewer.json"}
    assert json.loads((tmp_path / "scene.ply.viewer.json").read_text())["cameras"]
    _, out, _ = call("export", *where, f"--output={tmp_path / 'scene.glb'}", "--up=0,0,1")
    assert "up was 0.000,0.000,1.000, given by --up" in out
    _, out, _ = call("export", *where, f"--output={tmp_path / 'scene.glb'}", "--upright=False")
    assert "upright" not in out and "read back" in out
    assert_refused(call("export", *where, f"--output={tmp_path / 'scene.splat'}"), "ends in .ply")


FLAGS = {
    "demo": "--blur",
    "run": "--workdir",
    "sfm": "--max_size",
    "train": "--config",
    "sweep": "--variant",
    "evaluate": "--workdir",
    "render": "--path",
    "export": "--output",
}


@pytest.mark.parametrize("program,flag", FLAGS.items())
def test_help_helps(program, flag, call):
    code, out, err = call(program, "--help")
    assert code in (0, 1) and flag in out + err
    assert re.search(rf"^  bags-jax {program} \S", out + err, re.MULTILINE)  # a command to copy
    assert "Traceback" not in out + err
    assert err == "" and "--logtostderr" not in out  # no flags of libraries
    assert max(len(line) for line in out.splitlines()) <= 100


def test_help_of_training_lists_every_setting(call):
    _, out, _ = call("train", "--help")
    text = " ".join(out.split())
    for name, default, rule in rows():
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert f"{name} {shown}" in text, name
        assert rule.meaning in text and rule.expected in text and rule.unit in text, name


def test_help_of_a_benchmark_lists_its_flags(call):
    code, out, _ = call("benchmarks.quality", "--help")
    assert code == 0 and "--suite" in out and "--logtostderr" not in out and "loss.ssim" not in out


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_bags_jax_lists_its_commands(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["bags-jax", *arguments])
    main()
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS:
        assert [line for line in lines if line.startswith(f"  bags-jax {command} ")], command


def test_bags_jax_prints_its_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bags-jax", "--version"])
    main()
    assert capsys.readouterr().out == f"bags-jax {bags_jax.__version__}\n"


@pytest.mark.parametrize("command", ["trian", "--workdir=x", ""])
def test_unknown_command(call, command):
    assert_refused(call(command), repr(command), *COMMANDS, "python -m experiments.benchmarks.quality")


def test_every_command_has_a_door_in_a_clone():
    for command in COMMANDS:
        door = (ROOT / "experiments" / f"{command}.py").read_text()
        assert f"from bags_jax.cli.{command} import run\n" in door and "    run()\n" in door


# --- mistakes in a process of their own ------------------------------------------------------------------------------


def test_mistakes_in_a_process_of_their_own(tmp_path, trained):
    refused(command("train", SMOKE), "workdir")
    refused(command("train", SMOKE, "--config.blur.kernel_sizes=4,5", f"--workdir={tmp_path / 'run'}"), "has 4", "odd")
    refused(command("evaluate", f"--workdir={tmp_path}"), "expected the folder of a training run")
    assert not any(tmp_path.iterdir())


def test_damaged_checkpoint_in_a_process_of_its_own(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    for path in (workdir / "checkpoints").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    before = contents(workdir)
    refused(
        command("export", f"--workdir={workdir}", f"--output={tmp_path / 'x.ply'}"),
        "cannot be read",
        "move that folder away",
    )
    assert contents(workdir) == before and not (tmp_path / "x.ply").exists()


# --- mistakes in a configuration -------------------------------------------------------------------------------------

MISTAKES = {
    "no config": ((), ("--config",)),
    "file missing": (("--config=configs/nothing.py",), ("configs/nothing.py",)),
    "unknown name": (
        ("--config=costom",),
        ("costom", "base, custom, deblur_nerf, exblurf, mip360_mixed, procedural, realx3d"),
    ),
    "unknown name with words": (("--config", "costom:smoke"), ("costom", "base, custom, deblur_nerf")),
    "folder": (("--config=configs",), ("--config=configs", "a Python file")),
    "unknown key": ((SMOKE, "--config.nokey=1"), ("nokey", "see --help")),
    "unknown inner key": ((SMOKE, "--config.blur.nokey=1"), ("nokey", "see --help")),
    "unknown flag": ((SMOKE, "--nokey=1"), ("nokey",)),
    "no number": ((SMOKE, "--config.num_steps=many"), ("many",)),
    "stray argument": ((SMOKE, "motion"), ("'motion' was not expected",)),
    "unknown scene": (("--config=configs/deblur_nerf.py:nowhere",), ("nowhere", "blurball")),
    "unknown word": (("--config=configs/custom.py:smok",), ("smok", "smoke")),
    "unknown blur": (("--config=configs/procedural.py:motoin",), ("motoin", "defocus")),
    "unknown layout": ((SMOKE, "--config.synthetic.layout=attic"), ("'attic'", "still_life, corner, relief, flight")),
    "two layouts": (("--config=configs/procedural.py:corner,relief",), ("corner and relief", "one of them")),
    "blur scale": ((SMOKE, "--config.synthetic.blur_scale=0"), ("blur_scale is 0", "0.5 is easy")),
    "pose noise": ((SMOKE, "--config.synthetic.pose_noise_px=-1"), ("pose_noise_px is -1", "0 is exact")),
    "even kernel": ((SMOKE, "--config.blur.kernel_sizes=3,6"), ("has 6", "odd")),
    "too few kernels": ((SMOKE, "--config.blur.kernel_sizes=3,"), ("has 1 values, expected 2",)),
    "kernel over image": ((SMOKE, "--config.blur.kernel_sizes=3,31"), ("32 x 24", "31")),
    "stops that fall": ((SMOKE, "--config.stages.stops=0.9,0.5"), ("stages.stops", "expected rising steps")),
    "stops that end early": ((SMOKE, "--config.stages.stops=0.2,0.5"), ("end at num_steps=12",)),
    "scales that fall": ((SMOKE, "--config.stages.scales=1.0,0.5"), ("expected rising scales",)),
    "words for numbers": ((SMOKE, "--config.data.background=white"), ("background is ('white',)", "expected numbers")),
    "no steps": ((SMOKE, "--config.num_steps=0"), ("num_steps is 0, expected a value, or config.minutes",)),
    "no logs": ((SMOKE, "--config.log_every=0"), ("log_every is 0, expected at least 1",)),
    "degree": ((SMOKE, "--config.sh_degree=4"), ("sh_degree is 4, expected 0 to 3",)),
    "devices": ((SMOKE, "--config.num_devices=7"), ("num_devices is 7, but this machine has 2",)),
    "too few rows": ((SMOKE, "--config.max_gaussians=100"), ("max_gaussians",)),
    "negative threshold": (
        (SMOKE, "--config.density.grad_threshold=-1"),
        ("density.grad_threshold is -1", "at least 0"),
    ),
    "no time": ((SMOKE, "--config.blur.warmup=nan"), ("blur.warmup is nan", "at least 0")),
    "negative rate": ((SMOKE, "--config.optim.quats=-1"), ("optim.quats is -1", "at least 0")),
    "negative degree": ((SMOKE, "--config.sh_every=-1"), ("sh_every is -1", "at least 0")),
    "no root": (("--config=configs/custom.py",), ("config.data.root is empty",)),
    "root missing": (("--config=configs/custom.py", "--config.data.root=/nowhere"), ("/nowhere does not exist",)),
    "unknown format": (
        ("--config=configs/custom.py", "--config.data.root=configs", "--config.data.format=x"),
        ("'x'",),
    ),
}


@pytest.mark.parametrize("arguments,said", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistaken_configuration(call, tmp_path, arguments, said):
    assert_refused(call("train", *arguments, f"--workdir={tmp_path / 'run'}"), *said)
    assert not any(tmp_path.iterdir())  # a run that cannot start leaves no trace


@pytest.mark.parametrize(
    "text,said", [("config = 3", "get_config"), ("def get_config(:", "syntax"), ("import nothing_here", "nothing_here")]
)
def test_configuration_file_that_is_none(call, tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text + "\n")
    before = contents(tmp_path)
    result = call("train", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    assert_refused(result)
    assert said in result[2]
    assert {k: v for k, v in contents(tmp_path).items() if "__pycache__" not in str(k)} == before


@pytest.mark.parametrize("photographs", [0, 2])
def test_capture_that_is_none(call, tmp_path, photographs):
    (tmp_path / "capture" / "images").mkdir(parents=True) if photographs else (tmp_path / "capture").mkdir()
    for i in range(photographs):
        Image.new("RGB", (32, 24)).save(tmp_path / "capture" / "images" / f"{i}.png")
    before = contents(tmp_path)
    data = f"--config.data.root={tmp_path / 'capture'}"
    result = call("train", "--config=configs/custom.py:smoke", data, f"--workdir={tmp_path / 'run'}")
    assert_refused(result, "no camera poses" if photographs else "is empty")
    assert contents(tmp_path) == before and not (tmp_path / "run").exists()


# --- mistakes with a benchmark ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments,said",
    [
        ((), "workdir"),
        (("--suite=nothing",), "nothing"),
        (("--cases=attic-motion",), "'attic-motion', expected all"),
        (("--methods=plain,best",), "'best', expected all"),
        (("--suite=blurball", "--data=/nowhere"), "--data=/nowhere is no folder"),
        (("--seeds=0",), "seeds"),
        (("--at_once=-1",), "at_once"),
        (("--tables_only",), "no run of these cases, methods and seeds is done"),
    ],
)
def test_mistaken_benchmark(call, tmp_path, arguments, said):
    workdir = (f"--workdir={tmp_path / 'quality'}",) if arguments else ()
    assert_refused(call("benchmarks.quality", *arguments, *workdir), said)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name,argument,said",
    [
        ("training_step", "--images=abc", "--images has 'abc', expected WIDTHxHEIGHT"),
        ("training_step", "--counts=0", "--counts has '0', expected whole numbers"),
        ("training_step", "--backend=best", "--backend: backend='best' came, expected one of auto"),
        ("memory", "--kernel=4", "--kernel is 4, expected an odd number"),
        ("memory", "--strides=1,-2", "--strides has '-2', expected whole numbers"),
        ("cost", "--sizes=0x3", "--sizes has '0x3', expected WIDTHxHEIGHT"),
        ("cost", "--rows=/proc/none/rows", "--rows=/proc/none/rows cannot be written"),
        ("training_step", "--rows=/proc/none/rows", "--rows=/proc/none/rows cannot be written"),
    ],
)
def test_mistaken_cost_benchmark(call, name, argument, said):
    assert_refused(call(f"benchmarks.{name}", argument), said)


def test_dry_benchmark_leaves_no_trace(call, tmp_path):
    arguments = ("--dry_run", "--cases=corner-none", "--seeds=2", f"--workdir={tmp_path / 'quality'}")
    code, out, _ = call("benchmarks.quality", *arguments)
    assert (
        code in (None, 0) and out.count("to do") == 6 and "corner-none/published/101" in out
    )  # its oracle is its plain
    assert not any(tmp_path.iterdir())


def test_a_platform_that_is_not_there(tmp_path):
    """In a process of its own: JAX chooses its devices once."""
    line = [sys.executable, "-m", "experiments.train", SMOKE, f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "rocm"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 2 and not any(tmp_path.iterdir())
    (told,) = [text for text in done.stderr.splitlines() if "error" in text]
    assert told.startswith("error: JAX finds no device with JAX_PLATFORMS=rocm: unset it")


@pytest.mark.parametrize(
    "arguments,said",
    [
        ((), "--input is missing"),
        (("--root=/nowhere",), "/nowhere does not exist"),
        (("--root={root}",), "0 photographs"),
        (("--root={root}", "--max_size=big"), "max_size"),
    ],
)
def test_mistaken_capture(call, tmp_path, arguments, said):
    assert_refused(call("sfm", *(argument.format(root=tmp_path) for argument in arguments)), said)
    assert not any(tmp_path.iterdir())


# --- mistakes with a working directory -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_workdir_that_cannot_be_written(call, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    assert_refused(call("train", SMOKE, f"--workdir={tmp_path / place}"), "--workdir", "cannot be written")
    assert contents(tmp_path) == {pathlib.Path("file"): b"mine"}


def test_workdir_of_another_configuration(trained, call):
    workdir, _ = trained
    before = contents(workdir)
    result = call("train", *QUICK, "--config.blur.mask_logit=1.0", f"--workdir={workdir}")
    assert_refused(result, "another configuration", "blur.mask_logit is 3.0 there and 1.0 here")
    assert contents(workdir) == before


@pytest.mark.parametrize("text", ["{", "[1]", "{}", "\x80"])
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_workdir_with_a_damaged_configuration(call, tmp_path, text, program):
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    before = contents(tmp_path)
    arguments = QUICK if program == "train" else ("--compilation_cache=",)
    assert_refused(call(program, *arguments, f"--workdir={tmp_path}"), "config.json")
    assert contents(tmp_path) == before


PROGRAMS = {
    "evaluate": ("--compilation_cache=",),
    "render": ("--compilation_cache=", "--path=test"),
    "export": ("--compilation_cache=", "--output=/x.ply"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_workdir(call, program):
    assert_refused(call(program, *PROGRAMS[program]), "workdir")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("place", ["", "missing", "file", "file/run"])
def test_folder_that_is_no_run(call, tmp_path, program, place):
    (tmp_path / "file").write_text("mine")
    result = call(program, *PROGRAMS[program], f"--workdir={tmp_path / place}")
    assert_refused(result, "expected the folder of a training run")
    assert contents(tmp_path) == {pathlib.Path("file"): b"mine"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_run_without_checkpoint(trained, call, tmp_path, program):
    shutil.copy(trained[0] / "config.json", tmp_path)
    assert_refused(call(program, *PROGRAMS[program], f"--workdir={tmp_path}"), "no checkpoint", "train with this")
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_step_that_is_not_there(trained, call, program):
    result = call(program, *PROGRAMS[program], f"--workdir={trained[0]}", "--step=3")
    assert_refused(result, "no checkpoint of step 3", "4")


@pytest.mark.parametrize(
    "program,arguments,said",
    [
        ("export", (), "output"),
        ("export", ("--output={workdir}/config.json/x.ply", "--compilation_cache="), "cannot write"),
        ("export", ("--output=/nowhere/x.glb", "--compilation_cache="), "/nowhere is no folder"),
        ("export", ("--output={workdir}/x.ply", "--up=0,0,0"), "--up=0,0,1"),
        ("render", ("--path=nowhere",), "nowhere"),
        ("render", ("--path=/nowhere/path.json", "--compilation_cache="), "nerfstudio"),
        ("render", ("--path={workdir}/config.json", "--compilation_cache="), "camera_path"),
        ("render", ("--path=orbit", "--mode=compare", "--compilation_cache="), "--path=train"),
        ("render", ("--mode=blurry",), "blurry"),
        ("render", ("--frames=0",), "frames"),
        ("evaluate", ("--step=last",), "last"),
    ],
)
def test_mistaken_flags(trained, call, program, arguments, said):
    before = contents(trained[0])
    arguments = [argument.format(workdir=trained[0]) for argument in arguments]
    assert_refused(call(program, *arguments, f"--workdir={trained[0]}"), said)
    assert contents(trained[0]) == before
