"""The viewer without a browser: cameras, sizes, order of pictures, modes, checkpoints, and users' mistakes."""

import contextlib
import dataclasses
import importlib.util
import math
import pathlib
import shutil
import socket
import sys
import time
import urllib.request

import numpy as np
import pytest
from absl import app
from commands import run_with_own_flags

from bags_jax.cli.main import main
from bags_jax.data.poses import look_at
from bags_jax.errors import UserError
from bags_jax.report.pictures import to_uint8
from bags_jax.run import open_run, render_views
from bags_jax.training_views import render_training_views
from bags_jax.viewer.artist import Artist, Shot
from bags_jax.viewer.beside_training import checkpoint_period, watch_training
from bags_jax.viewer.camera import PhotoCamera, WindowCamera, focus_distance, orbit_up, wxyz_from_matrix
from bags_jax.viewer.count import count_gaussians
from bags_jax.viewer.demand import REST_S, Demand, next_order
from bags_jax.viewer.follow import MIN_ROWS, History, list_steps
from bags_jax.viewer.frustums import EXTENT_SHARE, choose_frustum_size
from bags_jax.viewer.modes import DIMMED, Mode, draw, put_in_frame
from bags_jax.viewer.picture_files import next_picture_path
from bags_jax.viewer.port import check_viewer, describe_address
from bags_jax.viewer.renders import Buffers, blur_as_photo, photo_cameras
from bags_jax.viewer.resolution import LADDER, WIDTH_STEP, Speed, picture_width, useful_heights
from bags_jax.viewer.server import make_gallery, open_history
from bags_jax.viewer.splats import make_splats
from tests.viewed_run import STEPS, write_run

UP = np.array([0.0, 0.0, 1.0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("viewed") / "run")


@pytest.fixture(scope="module")
def history(workdir):
    return open_history(workdir)


@pytest.fixture(scope="module")
def run(history):
    return history.run(STEPS[-1])


def photo_camera(width=60, height=40) -> PhotoCamera:
    viewmat = look_at(np.array([1.0, -2.0, 0.5]), np.array([0.2, 0.3, 0.1]), np.array([0.1, 0.0, -1.0]))
    return PhotoCamera(viewmat, np.array([[50.0, 0, 27], [0, 52.0, 22], [0, 0, 1]]), width, height)


def window_at(photo: PhotoCamera, width: int, height: int) -> WindowCamera:
    fov = photo.fov_of_window(width / height)
    return WindowCamera(photo.wxyz, tuple(map(float, photo.position)), fov, width, height)


def pixels(points, viewmat, K):
    camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    image = camera @ K.T
    return image[:, :2] / image[:, 2:]


# Cameras


def test_a_window_at_a_photograph_sees_what_the_photograph_sees():
    photo = photo_camera()
    points = np.random.default_rng(0).normal(size=(20, 3)) * 0.3
    for width, height in ((900, 500), (400, 900)):
        window = window_at(photo, width, height)
        np.testing.assert_allclose(window.viewmat, photo.viewmat, atol=1e-9)
        left, top, right, bottom = photo.frame_on(window, 320, 240)
        assert min(left, top) >= -1e-6 and right <= 320 + 1e-6 and bottom <= 240 + 1e-6, "the whole photograph is seen"
        here = pixels(points, window.viewmat, window.intrinsics(320, 240))
        there = pixels(points, photo.viewmat, photo.K) / [photo.width, photo.height]
        np.testing.assert_allclose(here, [left, top] + there * [right - left, bottom - top], atol=1e-6)


def test_quaternions_are_world_from_camera():
    rotation = photo_camera().viewmat[:3, :3]
    window = WindowCamera(wxyz_from_matrix(rotation.T), (0.0, 0.0, 0.0), 1.0, 10, 10)
    np.testing.assert_allclose(window.viewmat[:3, :3], rotation, atol=1e-12)


def test_rounding_of_the_browser_is_no_motion():
    camera = window_at(photo_camera(), 400, 300)
    negative = tuple(-x for x in camera.wxyz)
    assert camera.is_like(dataclasses.replace(camera, wxyz=negative, fov=camera.fov * (1 + 1e-7)))
    assert not camera.is_like(dataclasses.replace(camera, position=(0.0, 0.0, 0.0)))
    assert not camera.is_like(dataclasses.replace(camera, width=401))


def test_an_orbit_keeps_the_roll_of_the_photograph():
    viewmat = photo_camera().viewmat
    up = orbit_up(viewmat, UP)
    assert abs(up @ viewmat[0, :3]) < 1e-9 and up @ UP > 0.8 and math.isclose(np.linalg.norm(up), 1.0)
    lying = look_at(np.zeros(3), np.array([1.0, 0, 0]), np.array([0.0, 1, 0]))  # its right axis points up
    np.testing.assert_allclose(orbit_up(lying, UP), -lying[1, :3])


def test_the_orbit_centre_is_as_far_as_the_points_ahead():
    viewmat = look_at(np.zeros(3), np.array([0.0, 0, 1]), np.array([0.0, 1, 0]))
    points = np.concatenate([np.tile([0.1, 0.1, 4.0], (20, 1)), np.tile([9.0, 0.0, 1.0], (50, 1)), [[0, 0, -3.0]]])
    assert math.isclose(focus_distance(viewmat, points, otherwise=7.0), 4.0)
    assert focus_distance(viewmat, points[:3], otherwise=7.0) == 7.0


def test_frustums_fit_between_cameras():
    line = np.arange(5)[:, None] * np.array([[0.1, 0, 0]])
    assert math.isclose(choose_frustum_size(line, 1.0), 0.035)
    assert choose_frustum_size(line[:1], 2.0) == 2 * EXTENT_SHARE[1]
    assert choose_frustum_size(np.zeros((3, 3)), 1.0) == EXTENT_SHARE[0]


# Size and order of pictures


def test_pictures_are_as_large_as_the_time_allows():
    assert useful_heights(500) == [h for h in LADDER if h <= 600]
    assert picture_width(240, 16 / 9) % WIDTH_STEP == 0 and picture_width(96, 0.01) == WIDTH_STEP
    speed = Speed().add(240, 240 * 320, 0.05)
    assert speed.choose_height(useful_heights(700), 4 / 3, seconds=0.051) == 240
    assert speed.choose_height(useful_heights(700), 4 / 3, seconds=10.0) == 768
    assert speed.choose_height(useful_heights(700), 4 / 3, seconds=1e-6) == LADDER[0]
    slower = speed.add(240, 240 * 320, 0.2)
    assert slower.choose_height(LADDER, 4 / 3, seconds=0.05) < 240
    assert speed.predict(240, 4 / 3) < slower.predict(240, 4 / 3) < 0.2, "smoothed"


def test_a_moving_window_comes_first_and_is_sharpened_once_it_rests():
    demands, finals = {1: Demand(), 2: Demand()}, {1: 600, 2: 600}
    demands[2].change(100.0, moves=True)
    order, _ = next_order(demands, finals, 100.0)
    assert (order.window, order.version, order.is_final) == (2, 2, False)
    demands[2].draw(2, 240, 100.05)
    order, _ = next_order(demands, finals, 100.06)
    assert (order.window, order.is_final) == (1, True), "meanwhile the resting one"
    demands[1].draw(1, 600, 100.1)
    order, wait = next_order(demands, finals, 100.1)
    assert order is None and 0 < wait <= REST_S
    order, _ = next_order(demands, finals, 100.0 + REST_S + 0.01)
    assert (order.window, order.is_final) == (2, True)
    demands[2].draw(2, 600, 100.3)
    assert next_order(demands, finals, 200.0) == (None, None), "nothing is drawn twice"


def test_outdated_demands_are_dropped_and_windows_take_turns():
    demands, finals = {1: Demand(), 2: Demand()}, {1: 600, 2: 600}
    for _ in range(5):
        for demand in demands.values():
            demand.change(10.0, moves=True)
    drawn = []
    for i in range(4):
        order, _ = next_order(demands, finals, 10.0)
        assert order.version == demands[order.window].version, "the newest, not the oldest"
        drawn.append(order.window)
        demands[order.window].draw(order.version, 240, 10.0 + i)
        demands[order.window].change(10.0, moves=True)
    assert drawn == [1, 2, 1, 2]


def test_a_change_without_motion_is_drawn_sharp_at_once():
    demand = Demand()
    demand.draw(1, 600, 1.0)
    demand.change(2.0, moves=False)
    assert next_order({1: demand}, {1: 600}, 2.0)[0].is_final


# Modes


def test_counts_match_a_loop_over_gaussians():
    rng = np.random.default_rng(1)
    num, width, height = 60, 31, 23
    means = rng.uniform(-5, 35, (num, 2)).astype(np.float32)
    axes = rng.normal(size=(num, 2, 2)) * 3
    covariances = axes @ axes.transpose(0, 2, 1) + 0.3 * np.eye(2)
    inverse = np.linalg.inv(covariances)
    conics = np.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], axis=-1).astype(np.float32)
    opacities = rng.uniform(0, 1, num).astype(np.float32)
    opacities[:5] = 0.001
    y, x = np.mgrid[:height, :width] + 0.5
    expected = np.zeros((height, width), int)
    for (mx, my), (a, b, c), opacity in zip(means, conics.astype(float), opacities, strict=True):
        power = 0.5 * (a * (x - mx) ** 2 + c * (y - my) ** 2) + b * (x - mx) * (y - my)
        expected += opacity * np.exp(-power) >= 1 / 255
    counts = count_gaussians(means, conics, opacities, width=width, height=height)
    assert counts.max() > 3 and np.mean(counts != expected) < 0.002  # float32 at the edge of an ellipse
    assert not count_gaussians(means[:0], conics[:0], opacities[:0], width=5, height=4).any()


def test_a_photograph_is_put_into_its_frame():
    photo = np.zeros((20, 30, 3), np.uint8) + np.arange(30, dtype=np.uint8)[None, :, None] * 8
    around = np.full((80, 120, 3), 200, np.uint8)
    for box in ((30.0, 20.0, 90.0, 60.0), (30.0, 20.0, 45.0, 30.0)):
        left, top, right, bottom = map(int, box)
        picture = put_in_frame(around, photo, box)
        inside = picture[top:bottom, left:right, 0].astype(float)
        expected = (np.arange(right - left) + 0.5) / (right - left) * 30 * 8 - 4
        np.testing.assert_allclose(inside[2:-2].mean(axis=0)[2:-2], expected[2:-2], atol=6)
        assert set(picture[: top - 1].ravel()) == {int(200 * DIMMED)}
    assert put_in_frame(around, photo, (-500.0, -500.0, -100.0, -100.0)).max() == int(200 * DIMMED), "out of sight"


def test_every_mode_draws_and_the_photographs_are_exact(run):
    photos, buffers = photo_cameras(run), Buffers()
    photo, size = photos[1], (160, 112)
    camera = window_at(photo, *size)
    box = [round(edge) for edge in photo.frame_on(camera, *size)]
    window = slice(box[1] + 2, box[3] - 2), slice(box[0] + 2, box[2] - 2)
    shown = {mode: draw(run, buffers, mode, camera, 1, size, photos) for mode in Mode}
    assert all(picture.pixels.shape == (112, 160, 3) for picture in shown.values())
    assert len({picture.pixels.tobytes() for picture in shown.values()}) == len(Mode), "all different"
    (expected,) = render_views(run, camera.viewmat[None], camera.intrinsics(*size)[None], width=160, height=112)
    assert np.abs(shown[Mode.SHARP].pixels.astype(int) - to_uint8(np.asarray(expected.image))).max() <= 1
    images = run.scene.images
    framed = put_in_frame(shown[Mode.SHARP].pixels, images[run.scene.train_ids[1]], photo.frame_on(camera, *size))
    np.testing.assert_array_equal(shown[Mode.PHOTO].pixels[window], framed[window])
    for mode in (Mode.WIDTHS, Mode.DEPTH, Mode.COUNT):
        assert shown[mode].scale is not None


def test_the_blur_of_a_photograph_is_that_of_the_report(run):
    photos = photo_cameras(run)
    for index, view in enumerate(render_training_views(run)):
        blur = blur_as_photo(run, Buffers(), index, photos[index].viewmat)
        np.testing.assert_allclose(blur.blurred, np.asarray(view.blurred), atol=2e-3)
        np.testing.assert_allclose(blur.widths_px, np.asarray(view.blur.widths), atol=2e-3)


def test_without_a_blur_model_the_picture_is_sharp_and_says_so(run):
    early = dataclasses.replace(run, state=dataclasses.replace(run.state, step=run.state.step * 0))
    if early.model is not None:  # the first stage of this configuration has one
        early = dataclasses.replace(early, job=dataclasses.replace(run.job, model=None))
    photos = photo_cameras(run)
    picture = draw(early, Buffers(), Mode.REBLURRED, window_at(photos[0], 64, 48), 0, (64, 48), photos)
    assert "sharp" in picture.note


def test_a_buffer_that_is_too_small_grows(run, monkeypatch):
    photos, buffers = photo_cameras(run), Buffers()
    camera = window_at(photos[0], 160, 112)
    expected = draw(run, buffers, Mode.SHARP, camera, 0, (160, 112), photos)
    monkeypatch.setattr("bags_jax.viewer.renders.FIRST_BUFFER", 1)
    monkeypatch.setattr("bags_jax.viewer.renders.PER_GAUSSIAN", 0)
    picture = draw(run, Buffers(), Mode.SHARP, camera, 0, (160, 112), photos)
    np.testing.assert_array_equal(picture.pixels, expected.pixels)


def test_the_browser_gets_the_living_gaussians(run):
    splats = make_splats(run)
    alive = np.asarray(run.state.alive)
    assert splats["centers"].shape == (alive.sum(), 3) and splats["opacities"].shape == (alive.sum(), 1)
    scales = np.exp(np.asarray(run.state.gaussians.log_scales))[alive]
    variances = np.sort(scales**2 + np.asarray(run.state.filter_3d)[alive][:, None] ** 2, axis=-1)
    np.testing.assert_allclose(np.linalg.eigvalsh(splats["covariances"]), variances, rtol=1e-3, atol=1e-9)


def test_the_artist_learns_its_speed_and_compiles_ahead(history):
    artist = Artist(history)
    camera = window_at(artist.scene(STEPS[-1]).photos[0], 400, 300)
    shot = Shot(camera, Mode.SHARP, 0, STEPS[-1], is_drawn_by_browser=False)
    assert artist.draw(shot, 240)[1] is None and artist.draw(shot, 240)[1] > 0, "the first one is compiled"
    assert artist.quick_height(shot) == 240, "moving cameras get a size that is compiled"
    while artist.compile_ahead(shot):
        pass
    assert not artist.compile_ahead(dataclasses.replace(shot, photo=1))
    assert not artist.compile_ahead(dataclasses.replace(shot, is_drawn_by_browser=True))


# Checkpoints


def test_the_history_follows_training(workdir, tmp_path):
    live = pathlib.Path(shutil.copytree(workdir, tmp_path / "live"))
    for step in STEPS[1:]:
        shutil.move(live / "checkpoints" / str(step), tmp_path / str(step))
    (live / "checkpoints" / "8.orbax-checkpoint-tmp-1").mkdir()
    history = open_history(live)
    assert history.steps() == [4] == list_steps(live)
    shutil.move(tmp_path / "8", live / "checkpoints" / "8")
    shutil.rmtree(live / "checkpoints" / "4")
    assert history.look() == "" and history.steps() == [4, 8], "training deletes old checkpoints; the viewer keeps them"
    red = [float(np.mean(history.load(step).gaussians.sh_dc[..., 0])) for step in (4, 8)]
    assert red[0] < red[1]
    (live / "checkpoints" / "11").mkdir()
    assert "11" in history.look() and history.look() == "", "what cannot be read is said once"
    assert history.steps() == [4, 8]


def test_a_checkpoint_that_training_deletes_meanwhile_is_no_mistake(workdir, tmp_path, monkeypatch):
    live = pathlib.Path(shutil.copytree(workdir, tmp_path / "live"))
    history, load = History(live, open_history(workdir).job), History.load

    def load_late(self, step):
        if step == 12:
            shutil.rmtree(live / "checkpoints" / "12", ignore_errors=True)
        return load(self, step)

    monkeypatch.setattr(History, "load", load_late)
    assert int(history.load_newest().step) == 8
    assert history.look() == "" and history.steps() == [4, 8]


def test_only_living_rows_are_kept(history):
    state = history.load(STEPS[0])
    assert state.alive.shape[0] == MIN_ROWS and state.gaussians.means.shape[0] == MIN_ROWS
    assert state.alive.sum() == open_run(history.workdir, step=STEPS[0]).state.alive.sum()


def test_a_run_that_waits_shows_its_first_gaussians(tmp_path):
    waiting = write_run(tmp_path / "run", steps=())
    with pytest.raises(UserError, match="no checkpoint"):
        open_history(waiting)
    history = open_history(waiting, waits=True)
    assert history.steps() == [0] and history.load(0).alive.any()


def test_the_gallery_has_every_training_photograph(history, run):
    gallery = make_gallery(history, run)
    assert len(gallery.names) == len(gallery.thumbnails) == len(run.scene.train_ids)
    assert gallery.title == "BAGS-JAX · run" and math.isclose(np.linalg.norm(gallery.up), 1.0, rel_tol=1e-5)


def test_names_of_pictures_are_free(tmp_path):
    assert next_picture_path(tmp_path, 12, "DEPTH") == tmp_path / "viewer" / "0001_step12_depth.png"
    (tmp_path / "viewer").mkdir()
    for name in ("0007_step3_sharp.png", "notes.txt"):
        (tmp_path / "viewer" / name).touch()
    assert next_picture_path(tmp_path, 12, "SHARP").name == "0008_step12_sharp.png"


# Beside training


def test_a_watched_training_writes_more_checkpoints():
    assert checkpoint_period(24_000, 1000) == 600
    assert checkpoint_period(3200, 1000) == 250
    assert checkpoint_period(3200, 20) == 20, "as it was set"
    assert checkpoint_period(46_000, 1000) == 1000


def test_the_viewer_beside_training_serves_and_ends_with_it(workdir):
    port = free_port()
    with watch_training(workdir, host="127.0.0.1", port=port) as process:
        stop = time.monotonic() + 120
        page = ""
        while "<title>" not in page and process.is_alive() and time.monotonic() < stop:
            with contextlib.suppress(OSError):
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).read(2000).decode()
            time.sleep(0.2)
        assert "<title>" in page
    assert not process.is_alive()
    check_viewer("127.0.0.1", port)


# Users' mistakes


@pytest.fixture
def view(monkeypatch, capfd):
    """Runs `bags-jax view` in this process: (exit code, stdout, stderr)."""
    app.define_help_flags()

    def view(*arguments):
        monkeypatch.setattr(sys, "argv", ["bags-jax", "view", *arguments])
        code = run_with_own_flags(main, "bags_jax.cli.view")
        return code, *capfd.readouterr()

    return view


def test_mistakes_are_one_line(view, workdir, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    untrained = write_run(tmp_path / "untrained", steps=())
    port, taken = f"--port={free_port()}", socket.create_server(("127.0.0.1", 0))
    cache = "--compilation_cache="
    with taken:
        mistakes = {
            "config.json": (f"--workdir={tmp_path / 'empty'}", port, cache),
            "no checkpoint in": (f"--workdir={untrained}", port, cache),
            "there are 4, 8, 12": (f"--workdir={workdir}", "--step=5", port, cache),
            "in use": (f"--workdir={workdir}", f"--port={taken.getsockname()[1]}", cache),
            "--port": (f"--workdir={workdir}", "--port=70000", cache),
            "no.such.host.invalid": (f"--workdir={workdir}", "--host=no.such.host.invalid", port, cache),
        }
        for expected, arguments in mistakes.items():
            code, out, err = view(*arguments)
            assert (code, out) == (2, "") and expected in err and len(err.splitlines()) == 1, err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = view(f"--workdir={workdir}", port, cache)
    assert code == 2 and "pip install 'bags-jax[viewer]'" in err and len(err.splitlines()) == 1


def test_addresses_can_be_opened():
    assert describe_address("0.0.0.0", 80) == "http://localhost:80"
    assert describe_address("::1", 8080) == "http://[::1]:8080"
    assert describe_address("10.0.0.2", 8080) == "http://10.0.0.2:8080"


def test_an_unreadable_run_names_its_step(workdir, tmp_path):
    damaged = pathlib.Path(shutil.copytree(workdir, tmp_path / "damaged"))
    shutil.rmtree(damaged / "checkpoints" / "12" / "default", ignore_errors=True)
    with pytest.raises(UserError, match="12"):
        open_history(damaged)
    history = History(damaged, open_history(workdir).job)
    assert "12" in history.look() and history.steps() == [4, 8]
