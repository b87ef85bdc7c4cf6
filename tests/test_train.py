"""The loop: stages, density control, interruption, buffers that overflow, runs that blow up."""

import dataclasses
import importlib
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import plan
from bags_jax.checkpoint import Checkpoints
from bags_jax.errors import UserError
from bags_jax.interruption import Interruption
from bags_jax.ops.rasterize import bucket
from configs import deblur_nerf, procedural

train = importlib.import_module("bags_jax.training")  # the module: bags_jax.training is the function
room_for = train.room_for
ROWS = 256  # at the start, so that density control has to grow the state
ROOM = 8192  # more than is needed


def make_config(**changes):
    """Two stages of 6 steps; at step 6 the stage, density control and the capacity change, all at once."""
    config = procedural.get_config("motion,smoke")
    config.num_devices, config.views_per_step, config.blur.warmup = 1, 1, 0.0
    config.blur.use_rgbd = False  # compiles faster
    config.density.every, config.checkpoint_every, config.keep_checkpoints = 3, 3, 10
    config.update_from_flattened_dict(changes)
    return config


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Few rows, and the same room for pairs wherever a run begins: one program for all."""
    patch.setattr(plan, "capacity_plan", lambda num_points, max_gaussians: min(ROWS, max_gaussians))
    patch.setattr(train, "room_for", lambda pairs, **options: max(ROOM, room_for(pairs, **options)))


@pytest.fixture(autouse=True)
def small_runs(monkeypatch):
    make_small(monkeypatch)


MOST_PROGRAMS = 10  # that are kept: each has a thousand memory maps


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """Most runs of this file take the same steps: each is traced and compiled once. No test may alter what is traced."""
    compile_, programs = train.Programs._compile, {}

    def compile_once(self, recipe, *shapes):
        leaves, structure = jax.tree.flatten(shapes)
        key = recipe, structure, tuple(leaves)
        programs[key] = programs.pop(key, None) or compile_(self, recipe, *shapes)
        if len(programs) > MOST_PROGRAMS:
            programs.pop(next(iter(programs)), None)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Programs, "_compile", compile_once)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Working directory and last state of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return workdir, train.train(make_config(), workdir)


def assert_same(a, b):
    """The same to the last bit, and of the same shapes and types."""
    flat_a, flat_b = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (a, b))
    assert len(flat_a) == len(flat_b)
    for (path, x), (_, y) in zip(flat_a, flat_b, strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def log_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_run_passes_all_its_stages(straight):
    workdir, state = straight
    rows = log_of(workdir)
    assert int(state.step) == 12 and [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["image_scale"] for row in rows] == [0.5] * 3 + [1.0] * 3
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert int(jnp.sum(state.alive)) > 200 and state.alive.shape[0] > ROWS  # it densified, and grew for it


def test_mask_stays_open_on_blurry_views(straight):
    assert all(row["train/mask"] > 0.5 for row in log_of(straight[0]))


def test_logs_and_checkpoints_are_there(straight):
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
            train.train(make_config(), tmp_path)
    assert_same(train.train(make_config(), tmp_path), straight[1])
    assert log_of(tmp_path)[-1] == log_of(straight[0])[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", [2, 5, 8])
def test_a_signal_loses_no_step(straight, tmp_path, monkeypatch, when, number):
    """The first one has the state saved, though no checkpoint is due, once the steps under way are done."""
    look = train.Dispatch.look

    def look_and_be_told(self):
        metrics = look(self)
        if self.stop == when:
            os.kill(os.getpid(), number)
        return metrics

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = make_config(log_every=1, checkpoint_every=100)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Dispatch, "look", look_and_be_told)
        train.train(config, tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with Checkpoints(tmp_path) as checkpoints:
        assert when <= checkpoints.last() <= when + 1
    assert_same(train.train(config, tmp_path), straight[1])


def test_the_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.is_requested


def test_configuration_of_the_caller_stays_as_it_is(monkeypatch, tmp_path):
    config = make_config(views_per_step=0)
    monkeypatch.setattr(train, "make_job", lambda config: (_ for _ in ()).throw(UserError(config.views_per_step)))
    with pytest.raises(UserError, match="1"):
        train.train(config, tmp_path)
    assert config.views_per_step == 0


def test_steps_since_the_checkpoint_are_done_again(straight, tmp_path, monkeypatch):
    """Interrupted between two checkpoints, with the state and the log ahead of what was saved, the log in mid-line."""
    update, seen = train.Progress.update, []

    def update_and_stop(self, step, *rest):
        seen.append(step)
        if step == 8:
            raise KeyboardInterrupt
        update(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train.Progress, "update", update_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(make_config(), tmp_path)
    assert seen[-1] == 8
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8}\n{"step": 10, "tr')
    assert_same(train.train(make_config(), tmp_path), straight[1])
    assert [row["step"] for row in log_of(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_finished_run_stays_as_it_is(straight, capsys):
    workdir, state = straight
    before = (workdir / "metrics.jsonl").read_text()
    assert_same(train.train(make_config(), workdir), state)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_growth_is_compiled_ahead(straight, tmp_path, monkeypatch):
    """No step waits for the compiler because the scene grew or the stage changed: all is compiled in the background."""
    compiled = []
    compile_, prepare = train.Programs._compile, train.Programs.prepare

    def compile_and_note(self, recipe, state, dataset):
        compiled.append((threading.current_thread() is threading.main_thread(), state.alive.shape[0], recipe.stage))
        return compile_(self, recipe, state, dataset)

    def prepare_and_wait(self, *args):  # else it would be a race who begins to compile
        prepare(self, *args)
        for future in self._futures.values():
            future.result()

    monkeypatch.setattr(train.Programs, "_compile", compile_and_note)
    monkeypatch.setattr(train.Programs, "prepare", prepare_and_wait)
    assert_same(train.train(make_config(), tmp_path), straight[1])
    assert not any(is_main for is_main, _, _ in compiled)
    assert {rows for _, rows, stage in compiled if stage.start == 6} >= {ROWS, ROWS + ROWS // 2}


def test_devices_do_not_wait_for_the_host(tmp_path, monkeypatch):
    """While it looks at what they did they are at what comes next, checkpoints or not; only the end of a stage is waited for."""
    told = []
    steps, look, save = train.Programs.steps, train.Dispatch.look, Checkpoints.save

    def steps_and_note(self, recipe, state, dataset, start, stop):
        told.append(f"ask for {start} to {stop}")
        return steps(self, recipe, state, dataset, start, stop)

    def look_and_note(self):
        told.append(f"look at {self.stop}")
        return look(self)

    def save_and_note(self, state):
        told.append(f"save {int(state.step)}")
        save(self, state)

    monkeypatch.setattr(train.Programs, "steps", steps_and_note)
    monkeypatch.setattr(train.Dispatch, "look", look_and_note)
    monkeypatch.setattr(Checkpoints, "save", save_and_note)
    train.train(make_config(**{"checkpoint_every": 4, "density.every": 6}), tmp_path)
    first = ["ask for 0 to 2", "ask for 2 to 4", "look at 2", "ask for 4 to 6", "look at 4", "save 4", "look at 6"]
    then = ["ask for 6 to 8", "ask for 8 to 10", "look at 8", "save 8", "ask for 10 to 12", "look at 10", "look at 12"]
    assert told == [*first, *then, "save 12"]


@pytest.mark.parametrize("log_every", [1, 6])
def test_a_scene_does_not_depend_on_when_the_host_looks(straight, tmp_path, log_every):
    assert_same(train.train(make_config(log_every=log_every), tmp_path), straight[1])


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """Configuration and last state of one stage with density control every 2 steps, poses refined: what sums over all rows is
    rounded otherwise with more of them."""
    config = make_config(**{"density.every": 2, "checkpoint_every": 2, "optim.poses_start": 0.0})
    config.update_from_flattened_dict({"stages.scales": (0.5,), "stages.stops": (1.0,)})
    config.blur.kernel_sizes, config.blur.strides, config.num_steps = (3,), (1,), 8
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        state = train.train(config, tmp_path_factory.mktemp("growing"))
    assert state.alive.shape[0] > 1.5 * ROWS
    return config, state


def test_growth_in_flight_is_the_same_after_an_interruption(growing, tmp_path, monkeypatch):
    config, straight = growing
    save = Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        if int(state.step) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", save_and_stop)
        train.train(config, tmp_path)
    assert_same(train.train(config, tmp_path), straight)


def ends_halfway(monkeypatch, where):
    """Has the dispatch `where`, (start, stop), run out of room at its last step; returns the list of all that is asked for."""
    steps, asked = train.Programs.steps, []

    def steps_and_stop(self, recipe, state, dataset, start, stop):
        asked.append((start, stop, state.alive.shape[0]))
        if [each[:2] for each in asked].count((start, stop)) > 1 or (start, stop) != where:
            return steps(self, recipe, state, dataset, start, stop)
        state, metrics = steps(self, recipe, state, dataset, start, stop - 1)
        return state, {**metrics, "ok": jnp.int32(0), "num_dropped": jnp.int32(1)}

    monkeypatch.setattr(train.Programs, "steps", steps_and_stop)
    return asked


@pytest.mark.parametrize(
    "where", [(2, 3), (4, 6), (10, 12)], ids=["before density control", "at a stage's end", "last"]
)
def test_a_dispatch_that_ends_halfway_loses_nothing(straight, tmp_path, monkeypatch, where):
    """What was asked for ahead of it does nothing, and the rest of it is done again."""
    asked = ends_halfway(monkeypatch, where)
    assert_same(train.train(make_config(), tmp_path), straight[1])
    assert where in [each[:2] for each in asked]
    assert (where[1] - 1, where[1]) in [each[:2] for each in asked]


def test_a_dispatch_that_ends_before_growth_is_finished_with_its_own_rows(growing, tmp_path, monkeypatch):
    config, straight = growing
    asked = ends_halfway(monkeypatch, (2, 4))
    assert_same(train.train(config, tmp_path), straight)
    rows = {(start, stop): rows for start, stop, rows in asked}
    assert rows[3, 4] == rows[2, 4] < rows[4, 6]


@pytest.mark.parametrize("turn", [{"start": 0, "stop": 12, "reset_every": 6}, {"start": 12}], ids=["all", "filter"])
def test_a_state_that_has_not_come_so_far_is_left_alone(turn):
    """Density control, opacity reset and filter are asked for before it is known whether the steps before them were ok."""
    job = train.make_job(make_config())
    job = dataclasses.replace(job, density=dataclasses.replace(job.density, **turn))
    state, dataset = train.first_state(job), job.dataset(0.5)
    at = lambda step: dataclasses.replace(train.copied(state), step=jnp.int32(step))
    assert_same(train.after_step(job, at(5), 6, dataset), at(5))
    reached = train.after_step(job, at(6), 6, dataset)
    assert not np.array_equal(reached.filter_3d, state.filter_3d)
    lowered = jnp.max(jax.nn.sigmoid(reached.gaussians.logit_opacities)) < 0.05
    assert bool(lowered) == ("reset_every" in turn)


@pytest.mark.parametrize("room,pairs", [(4, 0), (1024, 1025), (5120, 100_000), (1 << 20, 0)])
def test_more_room_is_more(room, pairs):
    found = train.more_room(room, pairs)
    assert found > room and found >= pairs and found == bucket(found)
    assert found == train.more_room(room, found)  # what was prepared without knowing the pairs serves them


@pytest.mark.parametrize("room, pairs", [(9_000_000, 2**31 - 1), (7 * 2**28, 0)])
def test_room_for_more_than_can_be_counted_is_refused(room, pairs):
    with pytest.raises(UserError, match="expected at most 1879048192"):
        train.more_room(room, pairs)


def test_overflow_grows_the_buffer_and_loses_nothing(straight, tmp_path, monkeypatch):
    """The first guess at the room is far too small: steps are repeated, and the result is the same."""
    rooms = []
    recipe_of = train.Job.recipe

    def recipe_and_note(self, stage, dataset, room):
        rooms.append(room)
        return recipe_of(self, stage, dataset, room)

    enough, most_pairs = train.room_for, train.most_pairs
    small = train.make_job(make_config()).dataset(0.5).images.shape[2]
    monkeypatch.setattr(train, "most_pairs", lambda s, d, view: 1 if view.width == small else most_pairs(s, d, view))
    monkeypatch.setattr(train, "room_for", lambda pairs, **options: 4 if pairs == 1 else enough(pairs, **options))
    monkeypatch.setattr(train.Job, "recipe", recipe_and_note)
    state = train.train(make_config(), tmp_path)
    assert 4 in rooms and max(rooms) >= 1024  # 0: the recipe that most_pairs is asked with
    assert_same(state, straight[1])


@pytest.mark.parametrize(
    "field,at,reason",
    [
        ("sh_dc", 4, "l1 = nan"),
        ("means", 4, "no term, but what the step makes of the parameters"),
        ("means", 6, "no term, but what the step makes of the parameters"),  # what the checkpoint of step 6 would hold
    ],
)
def test_blow_up_names_the_term_and_keeps_the_checkpoint(straight, tmp_path, monkeypatch, field, at, reason):
    """A mean that is not finite is culled, so that the loss alone would not tell."""
    after_step = train.after_step

    def poison(job, state, step, dataset):
        state = after_step(job, state, step, dataset)
        if step != at:
            return state
        values = getattr(state.gaussians, field).at[0].set(jnp.nan)
        return dataclasses.replace(state, gaussians=dataclasses.replace(state.gaussians, **{field: values}))

    with monkeypatch.context() as patch:
        patch.setattr(train, "after_step", poison)
        with pytest.raises(UserError, match=rf"step {at} \(scale 0.5, kernel 3\).*{reason}.*step 3 is kept") as caught:
            train.train(make_config(), tmp_path)
    assert "\n" not in str(caught.value) and "config.optim" in str(caught.value)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3]
    assert_same(train.train(make_config(), tmp_path), straight[1])


def test_a_scene_that_is_gone_is_no_success(tmp_path):
    with pytest.raises(UserError, match=r"no Gaussian is left after step 4: lower config.density.min_opacity \(2.0\)"):
        train.train(
            make_config(**{"density.every": 4, "density.min_opacity_early": 2.0, "density.min_opacity": 2.0}), tmp_path
        )


def test_plain_splatting_trains(tmp_path):
    config = make_config(**{"blur.enabled": False, "blur.kernel_sizes": (3,), "blur.strides": (1,)})
    config.update_from_flattened_dict({"stages.scales": (0.5,), "stages.stops": (1.0,), "density.every": 20})
    state = train.train(config, tmp_path)
    assert int(state.step) == 12 and not jax.tree.leaves(state.network)
    assert not any("mask" in name for row in log_of(tmp_path) for name in row)


def test_real_capture_trains(shared_data, tmp_path, monkeypatch):
    from bags_jax.evaluation import evaluate

    monkeypatch.setattr(plan, "capacity_plan", lambda num_points, max_gaussians: max_gaussians)
    config = deblur_nerf.get_config("blurball,smoke")
    config.data.root, config.data.factor = str(shared_data / "blurball"), 16
    config.num_devices, config.num_steps, config.blur.warmup = 1, 4, 0.0
    state = train.train(config, tmp_path)
    assert int(state.step) == 4 and int(jnp.sum(state.alive)) > 1000
    results = evaluate(tmp_path)
    assert len(results["per_view"]) == 4 and results["deblur_nerf"]["PSNR"] > 5
    assert len(list((tmp_path / "blur").glob("*_mask.png"))) == 23
