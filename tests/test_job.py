"""A job: the scene, its near plane, the blur model, the first Gaussians."""

import dataclasses

import jax
import numpy as np
import pytest

from bags_jax import growth
from bags_jax import job as job_module
from bags_jax.config import read_config
from bags_jax.errors import UserError
from bags_jax.job import check_views, first_state, load_photographs, make_job, state_template
from bags_jax.progress import Progress
from bags_jax.schedule import Stage
from bags_jax.synthetic import make_scene
from bags_jax.training import train
from configs import procedural


def make_config(**changes):
    config = procedural.get_config("motion,smoke")
    config.num_devices = config.views_per_step = 1
    config.update_from_flattened_dict(changes)
    return config


def make_small_job(**changes):
    return make_job(read_config(make_config(**changes)))


def test_settings_of_a_job_are_in_steps():
    job = make_small_job(**{"optim.poses_start": 0.5, "stages.stops": (0.5, 1.0), "num_steps": 10})
    assert job.settings.optim.poses_start == 5 and job.settings.stages.stops == (5, 10)
    assert all(isinstance(stage, Stage) for stage in job.stages) and job.stages[-1].stop == 10
    # 1 is a share in the configuration, a number of steps in the job: it must not become a share again.
    assert make_small_job(**{"num_steps": 100, "blur.warmup": 0.01}).settings.blur.warmup == 1


@pytest.mark.parametrize("given, extent, depth", [(0.0, 5.0, 0.2), (0.0, 0.1, 0.025), (0.05, 5.0, 0.05)])
def test_near_plane_is_that_of_the_settings_or_of_the_scene(given, extent, depth):
    job = dataclasses.replace(make_small_job(**{"data.near_plane": given}), extent=extent)
    assert job.near_plane == pytest.approx(depth) == job.view(8, 8).near_plane


def test_blur_model_is_for_the_training_views_and_may_be_absent():
    job = make_small_job()
    assert job.model is not None and job.model.num_views == len(job.scene.train_ids) == 4
    assert job.model.kernel_sizes == job.settings.blur.kernel_sizes
    assert make_small_job(**{"blur.enabled": False}).model is None


@pytest.mark.parametrize(
    "changes, message",
    [
        (("use_rgbd", "use_position", "use_embedding"), "expected one of them: the network sees nothing"),
        (("use_mask",), "config.blur.use_mask is False, which the published network cannot follow"),
    ],
)
def test_networks_that_cannot_be_are_refused(changes, message):
    off = {f"blur.{name}": False for name in changes}
    with pytest.raises(UserError, match=message):
        make_small_job(**off, **{"blur.published_network": len(changes) == 1, "blur.hand_over": False})


def test_poses_are_refined_where_they_have_a_rate():
    assert make_small_job().pose_frame is not None
    assert make_small_job(**{"optim.poses": 0.0}).pose_frame is None


def test_poses_of_an_end_of_the_exposure_are_kept_and_kernels_not_centred():
    for anchor in ("start", "end"):
        job = make_small_job(**{"data.shutter_anchor": anchor})
        assert job.pose_frame is None and job.settings.loss.centroid == job.settings.optim.poses == 0.0
        assert job.scene.notes[-1].startswith(f"poses are those of the {anchor} of the exposures: they are kept")
    middle = make_small_job(**{"data.shutter_anchor": "mid"})
    assert middle.pose_frame is not None and middle.settings.loss.centroid == 0.01
    with pytest.raises(UserError, match="config.data.shutter_anchor is 'middle', expected one of start, mid, end"):
        make_small_job(**{"data.shutter_anchor": "middle"})


def test_poses_that_would_never_move_are_refused():
    with pytest.raises(UserError, match="poses_final is 0, expected more"):
        make_small_job(**{"optim.poses_final": 0.0})


def test_backend_that_this_machine_lacks_is_refused():
    with pytest.raises(UserError, match="backend='vulkan' came, expected one of auto"):
        make_small_job(backend="vulkan")


def test_points_that_no_view_sees_are_refused(tmp_path, monkeypatch):
    """Training would end, without a message, in a black scene."""

    def load_and_hide(settings):
        scene = load_photographs(settings)
        away = 100.0 * scene.viewmats[:, 2, :3].mean(axis=0)
        return dataclasses.replace(scene, points=scene.points - away)

    monkeypatch.setattr(job_module, "load_photographs", load_and_hide)
    with pytest.raises(UserError, match="no training view sees any of the 200 Gaussians"):
        train(make_config(), tmp_path / "run")
    assert not (tmp_path / "run" / "capture.json").exists()  # the run may go on with a new reconstruction


def test_capture_without_points_starts_from_random_ones(monkeypatch, capsys):
    def without_points(*args, **kwargs):
        scene = make_scene(*args, **kwargs)
        return dataclasses.replace(scene, points=scene.points[:0], point_colors=scene.point_colors[:0])

    monkeypatch.setattr(job_module, "make_scene", without_points)
    job = make_small_job(**{"init.num_random": 200})
    state = first_state(job)
    means = np.asarray(state.gaussians.means)[np.asarray(state.alive)]
    assert means.shape == (200, 3) and np.ptp(means, axis=0).min() > 2 * job.extent
    jax.tree.map(np.testing.assert_array_equal, state, first_state(job))  # the seed decides
    notes = [note for note in job.scene.notes if "no points" in note]
    assert len(notes) == 1 and "200 random" in notes[0]
    with Progress(job.settings.num_steps, job.scene.notes):
        pass
    assert capsys.readouterr().out.count("no points") == 1


def test_more_points_than_gaussians():
    with pytest.raises(UserError, match="200 points came for at most 100 Gaussians: raise config.max_gaussians"):
        first_state(make_small_job(max_gaussians=100))


def test_capacity_is_that_of_the_settings_where_it_is_cheap():
    assert first_state(make_small_job(max_gaussians=300)).alive.shape == (300,)
    assert first_state(make_small_job(max_gaussians=10**6)).alive.shape == (growth.CPU.first_rows,)


def test_template_has_the_shapes_of_the_state():
    job = make_small_job()
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (first_state(job), state_template(job)))
    assert shapes[0] == shapes[1]


def test_checkpoint_of_another_number_of_views_is_refused():
    job = make_small_job()
    state = first_state(job)
    check_views(state, job.scene)
    fewer = dataclasses.replace(state, poses=state.poses[:3], exposures=state.exposures[:3], blur_px=state.blur_px[:3])
    with pytest.raises(UserError, match="the checkpoint has 3 training views, the capture has 4 now"):
        check_views(fewer, job.scene)


def test_embedded_scenes_are_loaded_as_the_settings_say(monkeypatch):
    calls = []
    tiny = make_scene("none", width=16, height=16, num_train=2, num_test=0, num_points=0)
    monkeypatch.setattr(job_module, "make_scene", lambda blur, **options: calls.append((blur, options)) or tiny)
    config = procedural.get_config("defocus,corner,easy")
    config.synthetic.pose_noise_px = 0.7
    assert load_photographs(read_config(config)) is tiny
    ((blur, options),) = calls
    names = ("layout", "blur_scale", "pose_noise_px", "width", "height", "num_train", "num_test", "num_points", "seed")
    assert blur == "defocus" and options == {name: config.synthetic[name] for name in names}


def test_oracle_is_loaded_sharp_or_refused(monkeypatch):
    config = procedural.get_config("motion,smoke")
    config.data.use_sharp = True
    scene = load_photographs(read_config(config))
    np.testing.assert_array_equal(scene.images, scene.sharp_images)
    assert scene.names[scene.train_ids[0]] == "train_000.png"
    monkeypatch.setattr(job_module, "make_scene", lambda *_, **__: dataclasses.replace(scene, sharp_images=None))
    with pytest.raises(UserError, match="use_sharp is set, but no sharp truth"):
        load_photographs(read_config(config))


def test_a_capture_needs_a_folder():
    with pytest.raises(UserError, match="config.data.root is empty, expected the folder of a capture"):
        make_small_job(**{"data.format": "auto"})
