"""`bags-jax run`: one command from photographs to a report and a splat, which goes on after an interruption."""

import sys

import numpy as np
import pytest
from absl import app
from captures import write_colmap, write_photos
from commands import run_with_own_flags
from PIL import Image

from bags_jax.cli.main import main
from bags_jax.data import load_scene
from bags_jax.synthetic import make_scene

SETTINGS = (
    "--config=custom:smoke",
    "--config.data.factor=1",
    "--config.num_devices=1",
    "--config.num_steps=2",
    "--config.max_gaussians=512",
    "--config.blur.enabled=False",  # compiles in a third of the time
    "--config.compilation_cache=",
)


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs `bags-jax run` in this process, where there is a display: (exit code, stdout, stderr, opened addresses)."""
    app.define_help_flags()
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bags-jax", "run", *map(str, arguments)])
        capfd.readouterr()
        code = run_with_own_flags(main, "bags_jax.cli.run")
        out, err = capfd.readouterr()
        return code, out, err, opened

    return run


@pytest.fixture
def stages(monkeypatch):
    """Replaces the stages after the poses by a list of their names, so that a test takes no minutes."""
    done = []
    monkeypatch.setattr("bags_jax.training.train", lambda config, workdir: done.append(("train", config.data.root)))
    monkeypatch.setattr("bags_jax.evaluation.evaluate", lambda workdir: done.append(("evaluate",)) or {})
    monkeypatch.setattr("bags_jax.export.splat.export", lambda workdir, path: done.append(("export", path.name)))
    monkeypatch.setattr("bags_jax.report.score_text.describe_scores", lambda results: "scores")
    return done


@pytest.fixture
def posed(tmp_path):
    write_photos(tmp_path / "posed" / "images")
    write_colmap(tmp_path / "posed")
    return tmp_path / "posed"


def test_from_a_capture_to_report_and_splat(run, posed, tmp_path):
    """The real stages, on 6 photographs that have poses. The same command again finds the training done."""
    workdir = tmp_path / "run"
    code, out, err, opened = run(posed, f"--workdir={workdir}", *SETTINGS)
    assert code in (None, 0), err
    report, splat = workdir / "report" / "index.html", workdir / "scene.ply"
    assert report.is_file() and splat.read_bytes().startswith(b"ply")
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("[")] == [
        "[1/4] cameras",
        "[2/4] training",
        "[3/4] evaluation",
        "[4/4] export",
    ]
    assert "has camera poses: they are used" in out and f"report: {report}" in out and "PSNR" in out
    assert opened == [report.as_uri()] and not (workdir / "capture").exists()
    code, out, err, opened = run(posed, f"--workdir={workdir}", "--open=False", *SETTINGS)
    assert code in (None, 0) and "all 2 steps of this run are done already" in out + err and len(opened) == 1


def test_bare_photographs_get_poses_once(run, stages, tmp_path):
    scene = make_scene("none", width=320, height=208, num_train=12, num_test=0, num_points=0)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(scene.images):
        Image.fromarray(np.asarray(image)).save(tmp_path / "photos" / f"{number}.png")
    arguments = (tmp_path / "photos", f"--workdir={tmp_path / 'run'}", "--open=False")
    code, out, err, _ = run(*arguments)
    capture = tmp_path / "run" / "capture"
    assert code in (None, 0) and "12 of 12 photographs have a pose" in out
    assert "features: 100%" in err and "matches: 100%" in err and "cameras: 100%" in err  # progress bars
    assert stages == [("train", str(capture)), ("evaluate",), ("export", "scene.ply")]
    assert len(load_scene(capture).names) == 12
    model = (capture / "sparse" / "0" / "images.bin").read_bytes()
    _, out, _, _ = run(*arguments)
    assert f"poses of an earlier call are used: {capture}" in out and len(stages) == 6
    assert (capture / "sparse" / "0" / "images.bin").read_bytes() == model
    (tmp_path / "other").mkdir()
    for number in range(4):
        (tmp_path / "other" / f"{number}.png").write_bytes((tmp_path / "photos" / "1.png").read_bytes())
    code, _, err, _ = run(tmp_path / "other", *arguments[1:])
    assert code == 2 and "was made from another source than" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments,said",
    [
        (("--workdir={0}/run",), "PATH is missing"),
        (("{0}",), "--workdir is missing"),
        (("{0}", "{0}", "--workdir={0}/run"), "PATH comes once"),
        (("{0}/nowhere", "--workdir={0}/run"), "nowhere does not exist"),
        (("{0}", "--workdir={0}/run"), "0 photographs"),
        (("{0}", "--workdir={0}/run", "--config.num_steps=-1"), "num_steps"),
        (("{0}", "--workdir={0}/run", "--config=procedural:motion"), "embedded scene"),
        (("{0}", "--workdir={0}/run", "--config.data.root=x"), "data.root"),
        (("{0}/film.mp4", "--workdir={0}/run"), "cannot be decoded as a video"),
        (("{1}", "--workdir={0}/film.mp4"), "is a file"),
    ],
)
def test_mistakes_are_refused_before_any_work(run, stages, posed, tmp_path, arguments, said):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "film.mp4").write_bytes(b"no film")
    code, _, err, _ = run(*(argument.format(folder, posed) for argument in arguments))
    assert code == 2 and said in err and err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["film.mp4"] and not stages


def test_an_interruption_says_how_to_go_on(run, stages, posed, tmp_path, monkeypatch):
    def interrupt(config, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr("bags_jax.training.train", interrupt)
    code, _, err, _ = run(posed, f"--workdir={tmp_path / 'run'}")
    assert code == 130 and err.startswith("error: interrupted: the same command continues") and err.count("\n") == 1
