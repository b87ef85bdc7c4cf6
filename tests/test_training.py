"""Training runs: stages, density control, interruption, buffers that overflow, losses that are not finite."""

import dataclasses
import json
import os
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import dispatch, training
from bags_jax import job as job_module
from bags_jax.checkpoint import Checkpoints
from bags_jax.config import read_config
from bags_jax.dispatch import Dispatch
from bags_jax.errors import UserError
from bags_jax.evaluation import evaluate
from bags_jax.export.ply import write_ply
from bags_jax.interruption import Interruption
from bags_jax.job import first_state, make_job
from bags_jax.ops.rasterize import buffer_size
from bags_jax.programs import Programs, largest_count
from bags_jax.progress import Progress
from bags_jax.training import shows_pictures, train
from configs import deblur_nerf, procedural

ROWS = 256  # at the start, so that density control has to grow the state
BUFFER = 8192  # more than is needed


def make_config(**changes):
    """Two stages of 6 steps; at step 6 the stage, density control and the capacity change, all at once."""
    config = procedural.get_config("motion,smoke")
    config.num_devices, config.views_per_step, config.blur.warmup = 1, 1, 0.0
    config.blur.use_rgbd = False  # compiles faster
    config.density.every, config.checkpoint_every, config.keep_checkpoints = 3, 3, 10
    config.update_from_flattened_dict(changes)
    return config


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Few rows, and the same buffer size wherever a run begins: one program for all."""
    patch.setattr(job_module, "first_capacity", lambda num_points, max_gaussians: min(ROWS, max_gaussians))
    patch.setattr(dispatch, "buffer_size", lambda num: max(BUFFER, buffer_size(num)))


@pytest.fixture(autouse=True)
def small_runs(monkeypatch):
    make_small(monkeypatch)


MOST_PROGRAMS = 10  # programs to keep: each has a thousand memory maps


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """Compiles each program once for all tests: most runs take the same steps. No test may change the traced code."""
    compile_, programs = Programs._compile, {}

    def compile_once(self, recipe, *shapes):
        leaves, structure = jax.tree.flatten(shapes)
        key = recipe, structure, tuple(leaves)
        programs[key] = programs.pop(key, None) or compile_(self, recipe, *shapes)
        if len(programs) > MOST_PROGRAMS:
            programs.pop(next(iter(programs)), None)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "_compile", compile_once)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Working directory and last state of a run without interruption."""
    workdir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return workdir, train(make_config(), workdir)


def assert_same(a, b):
    """Asserts equality to the last bit, of shapes and types too."""
    flat_a, flat_b = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (a, b))
    assert len(flat_a) == len(flat_b)
    for (path, x), (_, y) in zip(flat_a, flat_b, strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_run_passes_all_stages(straight):
    workdir, state = straight
    rows = log_of(workdir)
    assert int(state.step) == 12 and [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["image_scale"] for row in rows] == [0.5] * 3 + [1.0] * 3
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert (
        int(jnp.sum(state.alive)) > 200 and state.alive.shape[0] > ROWS
    )  # density control added Gaussians, and the state grew


def test_mask_stays_open_on_blurry_views(straight):
    assert all(row["train/mask"] > 0.5 for row in log_of(straight[0]))


def test_logs_and_checkpoints_are_written(straight):
    workdir, _ = straight
    assert any((workdir / "tensorboard").iterdir())
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps() == [3, 6, 9, 12]


@pytest.mark.parametrize("stop_after", [3, 6, 9], ids=["in a stage", "where a stage starts", "after growth"])
def test_interrupted_and_resumed_equals_straight(straight, tmp_path, monkeypatch, stop_after):
    save = Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        if int(state.step) == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), tmp_path)
    assert_same(train(make_config(), tmp_path), straight[1])
    assert log_of(tmp_path)[-1] == log_of(straight[0])[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", [2, 5, 8])
def test_a_signal_loses_no_step(straight, tmp_path, monkeypatch, when, number):
    """The first signal saves the state when the queued steps are done, although no checkpoint is due."""
    read = Dispatch.read

    def read_and_signal(self):
        done = read(self)
        if self.stop == when:
            os.kill(os.getpid(), number)
        return done

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = make_config(log_every=1, checkpoint_every=100)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Dispatch, "read", read_and_signal)
        train(config, tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with Checkpoints(tmp_path) as checkpoints:
        assert when <= checkpoints.last() <= when + 1
    assert_same(train(config, tmp_path), straight[1])


def test_the_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.is_requested


def test_configuration_of_the_caller_is_not_changed(monkeypatch, tmp_path):
    config = make_config(views_per_step=0)

    def refuse(settings, **_):
        raise UserError(f"{settings.views_per_step} views")

    monkeypatch.setattr(training, "make_job", refuse)
    with pytest.raises(UserError, match="1 views"):
        train(config, tmp_path)
    assert config.views_per_step == 0


def test_steps_since_the_last_checkpoint_are_repeated(straight, tmp_path, monkeypatch):
    """The run stops between two checkpoints, with state and log ahead of the last one, and the log in mid-line."""
    update, seen = Progress.update, []

    def update_and_stop(self, step, *rest):
        seen.append(step)
        if step == 8:
            raise KeyboardInterrupt
        update(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", update_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), tmp_path)
    assert seen[-1] == 8
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8}\n{"step": 10, "tr')
    assert_same(train(make_config(), tmp_path), straight[1])
    assert [row["step"] for row in log_of(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_finished_run_is_not_changed(straight):
    workdir, state = straight
    before = (workdir / "metrics.jsonl").read_text()
    assert_same(train(make_config(), workdir), state)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_growth_is_compiled_ahead(straight, tmp_path, monkeypatch):
    """No step waits for the compiler when the state grows or the stage changes: compilation runs in the background."""
    compiled = []
    compile_, prepare = Programs._compile, Programs.prepare

    def compile_and_record(self, recipe, state, dataset):
        compiled.append((threading.current_thread() is threading.main_thread(), state.alive.shape[0], recipe.stage))
        return compile_(self, recipe, state, dataset)

    def prepare_and_wait(self, *args):  # else background and main thread would race for the compilation
        prepare(self, *args)
        for future in self._futures.values():
            future.result()

    monkeypatch.setattr(Programs, "_compile", compile_and_record)
    monkeypatch.setattr(Programs, "prepare", prepare_and_wait)
    assert_same(train(make_config(), tmp_path), straight[1])
    assert not any(is_main for is_main, _, _ in compiled)
    assert {rows for _, rows, stage in compiled if stage.start == 6} >= {ROWS, ROWS + ROWS // 2}


def test_devices_do_not_wait_for_the_host(tmp_path, monkeypatch):
    """The next steps are queued before the host reads the metrics, checkpoints or not; only a stage's end is waited for."""
    events = []
    steps, read, save = Programs.steps, Dispatch.read, Checkpoints.save

    def steps_and_record(self, recipe, state, dataset, start, stop):
        events.append(f"queue {start} to {stop}")
        return steps(self, recipe, state, dataset, start, stop)

    def read_and_record(self):
        events.append(f"read {self.stop}")
        return read(self)

    def save_and_record(self, state):
        events.append(f"save {int(state.step)}")
        save(self, state)

    monkeypatch.setattr(Programs, "steps", steps_and_record)
    monkeypatch.setattr(Dispatch, "read", read_and_record)
    monkeypatch.setattr(Checkpoints, "save", save_and_record)
    train(make_config(**{"checkpoint_every": 4, "density.every": 6}), tmp_path)
    first = ["queue 0 to 2", "queue 2 to 4", "read 2", "queue 4 to 6", "read 4", "save 4", "read 6"]
    then = ["queue 6 to 8", "queue 8 to 10", "read 8", "save 8", "queue 10 to 12", "read 10", "read 12"]
    assert events == [*first, *then, "save 12"]


@pytest.mark.parametrize("log_every", [1, 6])
def test_result_does_not_depend_on_when_the_host_reads(straight, tmp_path, log_every):
    assert_same(train(make_config(log_every=log_every), tmp_path), straight[1])


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """Configuration and last state of one stage with density control every 2 steps and refined poses.

    Sums over all rows round differently when there are more rows, so rows must be added at the same steps in every run.
    """
    config = make_config(**{"density.every": 2, "checkpoint_every": 2, "optim.poses_start": 0.0})
    config.update_from_flattened_dict({"stages.scales": (0.5,), "stages.stops": (1.0,)})
    config.blur.kernel_sizes, config.blur.strides, config.num_steps = (3,), (1,), 8
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        state = train(config, tmp_path_factory.mktemp("growing"))
    assert state.alive.shape[0] > 1.5 * ROWS
    return config, state


@pytest.mark.slow
def test_growth_in_flight_is_the_same_after_an_interruption(growing, tmp_path, monkeypatch):
    config, straight = growing
    save = Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        if int(state.step) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", save_and_stop)
        train(config, tmp_path)
    assert_same(train(config, tmp_path), straight)


def overflow_at_last_step(monkeypatch, where):
    """Lets the buffer overflow at the last step of the dispatch `where`, (start, stop), once.

    Returns:
      List that collects (start, stop, rows) of every dispatch.
    """
    steps, queued = Programs.steps, []

    def steps_and_stop(self, recipe, state, dataset, start, stop):
        queued.append((start, stop, state.alive.shape[0]))
        if [each[:2] for each in queued].count((start, stop)) > 1 or (start, stop) != where:
            return steps(self, recipe, state, dataset, start, stop)
        state, metrics = steps(self, recipe, state, dataset, start, stop - 1)
        return state, {**metrics, "ok": jnp.int32(0), "num_dropped": jnp.int32(1)}

    monkeypatch.setattr(Programs, "steps", steps_and_stop)
    return queued


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [(2, 3), (4, 6), (10, 12)], ids=["before density control", "at a stage's end", "last"]
)
def test_dispatch_that_falls_short_loses_nothing(straight, tmp_path, monkeypatch, where):
    """The operations queued after it have no effect, and its remaining steps are queued again."""
    queued = overflow_at_last_step(monkeypatch, where)
    assert_same(train(make_config(), tmp_path), straight[1])
    assert where in [each[:2] for each in queued]
    assert (where[1] - 1, where[1]) in [each[:2] for each in queued]


@pytest.mark.slow
def test_dispatch_that_falls_short_before_growth_is_finished_with_its_own_rows(growing, tmp_path, monkeypatch):
    config, straight = growing
    queued = overflow_at_last_step(monkeypatch, (2, 4))
    assert_same(train(config, tmp_path), straight)
    rows = {(start, stop): rows for start, stop, rows in queued}
    assert rows[3, 4] == rows[2, 4] < rows[4, 6]


@pytest.mark.slow
def test_overflow_grows_the_buffer_and_loses_nothing(straight, tmp_path, monkeypatch):
    """The first buffer of stage 1 is far too small: steps are repeated, and the result is the same."""
    buffers = []
    make_recipe, enough = dispatch.make_recipe, dispatch.buffer_size
    small = round(0.5 * make_config().synthetic.width)

    def make_recipe_and_record(*args, buffer, **options):
        buffers.append(buffer)
        return make_recipe(*args, buffer=buffer, **options)

    def count_too_few(state, dataset, view):
        return 1 if view.width == small else largest_count(state, dataset, view)

    monkeypatch.setattr(dispatch, "largest_count", count_too_few)
    monkeypatch.setattr(dispatch, "buffer_size", lambda num: 4 if num <= 2 else enough(num))
    monkeypatch.setattr(dispatch, "make_recipe", make_recipe_and_record)
    state = train(make_config(), tmp_path)
    assert 4 in buffers and max(buffers) >= 1024  # 0: the recipe for counting the intersections
    assert_same(state, straight[1])


@pytest.mark.parametrize(
    "field,at,reason",
    [
        ("sh_dc", 4, "l1 = nan"),
        ("means", 4, "no term, but a gradient or a parameter"),
        ("means", 6, "no term, but a gradient or a parameter"),  # at step 6 a checkpoint is due
    ],
)
def test_loss_that_is_not_finite_names_the_term_and_keeps_the_checkpoint(
    straight, tmp_path, monkeypatch, field, at, reason
):
    """A Gaussian whose mean is not finite is culled, so the loss alone would not show it."""
    after_steps = dispatch.after_steps

    def poison(job, state, step, dataset, **options):
        state = after_steps(job, state, step, dataset, **options)
        if step != at:
            return state
        values = getattr(state.gaussians, field).at[0].set(jnp.nan)
        return dataclasses.replace(state, gaussians=dataclasses.replace(state.gaussians, **{field: values}))

    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "after_steps", poison)
        with pytest.raises(UserError, match=rf"step {at} \(scale 0.5, kernel 3\).*{reason}.*step 3 is kept") as caught:
            train(make_config(), tmp_path)
    assert "\n" not in str(caught.value) and "config.optim" in str(caught.value)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3]
    assert_same(train(make_config(), tmp_path), straight[1])


@pytest.mark.parametrize(
    "every, pictures_every, drawn",
    [(250, 1000, [1000, 2000]), (325, 1000, [1300, 2000]), (1000, 0, [1000, 2000]), (1000, 250, [1000, 2000])],
)
def test_pictures_have_a_period_of_their_own(every, pictures_every, drawn):
    settings = read_config(make_config(num_steps=2000, checkpoint_every=every, pictures_every=pictures_every))
    settings = dataclasses.replace(settings, pictures=True)
    checkpoints = [*range(every, 2000, every), 2000]
    assert [step for step in checkpoints if shows_pictures(settings, step)] == drawn
    assert not any(shows_pictures(dataclasses.replace(settings, pictures=False), step) for step in checkpoints)


def test_scene_without_gaussians_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no Gaussian is left after step 4: lower config.density.min_opacity \(2.0\)"):
        train(
            make_config(**{"density.every": 4, "density.min_opacity_early": 2.0, "density.min_opacity": 2.0}), tmp_path
        )


def test_plain_splatting_trains(tmp_path):
    config = make_config(**{"blur.enabled": False, "blur.kernel_sizes": (3,), "blur.strides": (1,)})
    config.update_from_flattened_dict({"stages.scales": (0.5,), "stages.stops": (1.0,), "density.every": 20})
    state = train(config, tmp_path)
    assert int(state.step) == 12 and not jax.tree.leaves(state.network)
    assert not any("mask" in name for row in log_of(tmp_path) for name in row)


def test_real_capture_trains(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(job_module, "first_capacity", lambda num_points, max_gaussians: max_gaussians)
    config = deblur_nerf.get_config("blurball,smoke")
    config.data.root, config.data.factor = str(shared_data / "blurball"), 16
    config.num_devices, config.num_steps, config.blur.warmup = 1, 4, 0.0
    state = train(config, tmp_path)
    assert int(state.step) == 4 and int(jnp.sum(state.alive)) > 1000
    results = evaluate(tmp_path)
    assert len(results["per_view"]) == 4 and results["deblur_nerf"]["PSNR"] > 5
    assert len(list((tmp_path / "blur").glob("*_mask.png"))) == 23


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps(straight, tmp_path, capsys):
    workdir, before = straight
    longer = shutil.copytree(workdir, tmp_path / "longer")
    state = train(make_config(num_steps=15), longer)
    assert int(state.step) == 15 and not jnp.array_equal(state.gaussians.sh_dc[:9], before.gaussians.sh_dc[:9])
    said = "".join(capsys.readouterr())
    assert "goes on from step 12 to 15: learning rates as in the last 20% of a run of 15 steps, density" in said
    assert [row["step"] for row in log_of(longer)][-2:] == [14, 15]
    assert Checkpoints(longer, create=False).last() == 15


def test_longer_runs_that_cannot_be(straight, tmp_path):
    workdir, _ = straight
    longer = shutil.copytree(workdir, tmp_path / "longer")
    with pytest.raises(UserError, match="num_steps=40 came for a finished run of 12 steps, .* expected at most 24; or"):
        train(make_config(num_steps=40), longer)
    with pytest.raises(UserError, match="holds a run of another configuration"):
        train(make_config(num_steps=15, sh_degree=1), longer)
    shutil.rmtree(longer / "checkpoints" / "12")
    with pytest.raises(UserError, match="has trained 9 of 12 steps, and --config.num_steps=15 came: finish it with"):
        train(make_config(num_steps=15), longer)
    assert json.loads((longer / "config.json").read_text())["num_steps"] == 12


def test_starts_from_another_scene(straight, tmp_path):
    workdir, state = straight
    living = jax.tree.map(lambda x: np.asarray(x)[np.asarray(state.alive)], state.gaussians)
    num = len(living.means)
    write_ply(tmp_path / "scene.ply", living, np.zeros(num))
    for place in (workdir, tmp_path / "scene.ply"):
        config = make_config(max_gaussians=num + 5, sh_degree=1)
        config.init.scene = str(place)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job_module, "first_capacity", lambda num, most: most)
            start = first_state(make_job(read_config(config)))
        assert int(start.alive.sum()) == num and start.alive.shape == (num + 5,)
        np.testing.assert_allclose(start.gaussians.means[:num], living.means, atol=1e-6)
        np.testing.assert_allclose(start.gaussians.logit_opacities[:num], living.logit_opacities, atol=1e-4)
        assert start.gaussians.sh_rest.shape == (num + 5, 3, 3) and not start.gaussians.sh_rest.any()  # degree 0 before
        too_few = dataclasses.replace(read_config(config), max_gaussians=num - 1)
        with pytest.raises(UserError, match=f"config.init.scene has {num} Gaussians, expected 1 to {num - 1}"):
            first_state(dataclasses.replace(make_job(read_config(config)), settings=too_few))
    config.init.scene = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere, expected the working directory of a run, or a .ply file"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
