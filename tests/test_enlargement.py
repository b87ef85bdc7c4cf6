"""Kernels that are enlarged where a stage begins: sizes, resumed runs, evaluation."""

import shutil

import jax
import numpy as np
import pytest
from test_training import compiled_once  # noqa: F401 (a fixture)

from bags_jax import dispatch, enlargement
from bags_jax.checkpoint import Checkpoints
from bags_jax.config import read_config
from bags_jax.enlargement import LARGEST_KERNEL, Enlarger, choose_sizes, find_source
from bags_jax.errors import UserError
from bags_jax.job import make_job
from bags_jax.ops.rasterize import buffer_size
from bags_jax.programs import Programs
from bags_jax.progress import Progress
from bags_jax.run import open_run
from bags_jax.snapshot import measure_edge
from bags_jax.training import train
from bags_jax.viewer.follow import History
from bags_jax.workdir import read_settings
from configs import procedural

START = 6  # of the second stage


def make_config(**changes):
    """Two stages of 6 steps whose kernels are too small: uniform ones have two thirds of their weight at the edge."""
    config = procedural.get_config("motion,smoke")
    config.num_devices, config.views_per_step, config.blur.warmup = 1, 1, 0.0
    config.blur.use_rgbd, config.blur.centre_logit = False, 0.0
    config.blur.kernel_sizes, config.blur.enlarge_kernels = (5, 5), True
    config.optim.poses = config.optim.exposures = 0.0  # compiles faster
    config.density.every, config.checkpoint_every, config.keep_checkpoints = 100, 3, 10
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Compiles no step that does not run, and all with one buffer size, wherever a run begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "prepare", lambda *_: None)
        patch.setattr(dispatch, "buffer_size", lambda num: max(8192, buffer_size(num)))
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Working directory, last state and notes of a run that enlarged its kernels."""
    workdir, notes = tmp_path_factory.mktemp("enlarged"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "note", lambda self, line: notes.append(line))
        return workdir, train(make_config(), workdir), notes


@pytest.mark.parametrize(
    "scales, sizes, head, expected",
    [
        ((0.25, 0.5, 1.0), (5, 9, 17), 1, (5, 13, 25)),  # 8 px at full scale become 12
        ((0.25, 0.5, 1.0), (5, 9, 17), 2, (5, 9, 25)),
        ((0.25, 0.5, 1.0), (5, 9, 29), 2, (5, 9, 29)),  # far enough
        ((0.25, 0.5, 1.0), (9, 9, 9), 1, (9, 25, LARGEST_KERNEL)),
        ((0.1, 0.5, 1.0), (5, 5, 5), 1, (5, 31, LARGEST_KERNEL)),
        ((0.1, 0.2, 1.0), (5, 5, 5), 1, (5, 13, LARGEST_KERNEL)),
    ],
)
def test_sizes_reach_half_as_far_again(scales, sizes, head, expected):
    config = make_config(**{"blur.kernel_sizes": sizes, "blur.strides": (1, 1, 1), "synthetic.width": 160})
    config.stages.scales, config.stages.stops, config.synthetic.height = scales, (0.3, 0.6, 1.0), 100
    job = make_job(read_config(config))
    before = find_source(job, next(stage for stage in job.stages if stage.head == head))
    assert before is not None and choose_sizes(job, before) == expected


def test_sizes_fit_the_photographs():
    job = make_job(read_config(make_config(**{"blur.kernel_sizes": (11, 11)})))  # photographs of 32 x 24 px
    before = find_source(job, job.stages[-1])
    assert before is not None and choose_sizes(job, before) == (11, 23)


def test_kernels_of_three_pixels_are_not_measured():
    job = make_job(read_config(make_config(**{"blur.kernel_sizes": (3, 5)})))
    assert find_source(job, job.stages[-1]) is None


def test_share_of_the_weight_at_the_edge():
    kernels = np.zeros((1, 2, 5, 5))
    kernels[0, 0, 2, 2] = kernels[0, 1, 0, 3] = 1.0
    assert measure_edge(kernels) == 0.5


def test_kernels_are_enlarged_once_a_stage_begins(straight):
    blur = read_settings(straight[0]).blur
    assert (blur.kernel_sizes, blur.given_kernel_sizes, blur.enlarged_at) == ((5, 13), (5, 5), (1,))
    table = straight[1].network["first"]["table_1"]["embedding"]
    assert table.shape[-1] == 13 * 13 and np.any(np.asarray(table))


def test_interrupted_and_resumed_equals_straight(straight, tmp_path, monkeypatch):
    """From a step after the enlargement; the test below has those before it."""
    save = Checkpoints.save

    def save_and_stop(self, state):
        save(self, state)
        if int(state.step) == START + 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, train(make_config(), tmp_path), straight[1])


@pytest.mark.slow
@pytest.mark.parametrize("newest", [START - 3, START])
def test_killed_after_the_settings_were_written_and_before_the_next_checkpoint(straight, tmp_path, monkeypatch, newest):
    """The settings have the larger kernels, the newest checkpoint the smaller ones."""

    def die(job, state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(enlargement, "fit_network", die)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), tmp_path)
    if newest < START:
        shutil.rmtree(tmp_path / "checkpoints" / str(START))
    assert read_settings(tmp_path).blur.kernel_sizes == (5, 13)
    assert open_run(tmp_path).stage.kernel_size == 5
    jax.tree.map(np.testing.assert_array_equal, train(make_config(), tmp_path), straight[1])


def test_is_said_once(straight):
    (line,) = [note for note in straight[2] if "edge" in note]
    assert "5 x 5 kernels at scale 0.5" in line and "blur.kernel_sizes=5,13" in line


def test_opened_run_has_the_larger_kernels(straight):
    run = open_run(straight[0])
    assert run.stage.kernel_size == 13 and run.state.network["first"]["kernel_heads_1"]["bias"].shape == (13 * 13,)


def test_other_sizes_are_another_run(straight):
    with pytest.raises(UserError, match="another configuration"):
        train(make_config(**{"blur.kernel_sizes": (5, 7)}), straight[0])


def test_narrow_blur_keeps_its_kernels(straight, tmp_path, monkeypatch):
    settings, run = read_config(make_config()), open_run(straight[0], step=START)
    monkeypatch.setattr(enlargement, "EDGE_SHARE", 0.99)
    job = make_job(settings)
    enlarger = Enlarger(tmp_path, settings, None, pytest.fail)
    assert enlarger.enlarge(job, job.stages[-1], run.state) is None and not list(tmp_path.iterdir())


def test_an_open_viewer_follows_the_larger_kernels(straight):
    """It was opened before they were enlarged."""
    history = History(straight[0], make_job(read_config(make_config())))
    assert history.run(START).stage.kernel_size == 5 and history.run(12).stage.kernel_size == 13
    assert history.run(12).job.model == open_run(straight[0]).job.model
