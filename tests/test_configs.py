"""Every configuration file loads, and its resolution schedule is the one that was published."""

import itertools

import pytest

from bags_jax import published
from bags_jax.budget import choose, find_step_cost
from bags_jax.config import read_config
from bags_jax.data.load import CaptureSize
from bags_jax.job import make_blur_model
from bags_jax.scene.density import is_reset_step, thresholds_at
from bags_jax.scene.optimizer import scale_rates
from bags_jax.schedule import check_image_size, count_steps, late_from, make_stages
from bags_jax.settings import in_steps
from bags_jax.synthetic.procedural import BLURS, LAYOUTS
from configs import base, custom, deblur_nerf, exblurf, mip360_mixed, procedural, realx3d

PUBLISHED = [(deblur_nerf, "deblur", name) for name in published.scenes("deblur")]
PUBLISHED += [(mip360_mixed, "mip360", name) for name in published.scenes("mip360")]
ALL = [(base, ""), (custom, ""), (exblurf, ""), (realx3d, "motion"), (realx3d, "defocus")]
ALL += [(procedural, blur) for blur in ("motion", "defocus", "mixed", "reduced", "none")]
ALL += [(procedural, words) for words in ("motion,corner,easy", "relief,large", "hard,small,defocus,still_life")]
ALL += [(procedural, f"{blur},published") for blur in ("motion", "mixed,large")]
ALL += [(module, name) for module, _, name in PUBLISHED]
ALL += [(module, f"{name},published") for module, _, name in PUBLISHED]


def with_word(argument, word):
    return ",".join(filter(None, (argument, word)))


def read_in_steps(config):
    """The settings of a configuration, with numbers of steps."""
    return in_steps(read_config(config), config.num_steps)


def published_stages(row):
    """Start, scale and kernel size of the paper's schedule for one scene, with the stop of each stage."""
    total, early = int(row["iterations"]), int(row["multiscale_steps"])
    rows = [(0, 0.25, 5), (3000, 0.5, 9), (6000, 1.0, 17), (early, 1.0, int(row["final_kernel"]))]
    return [(*r, stop) for r, stop in zip(rows, (3000, 6000, early, total), strict=True) if r[0] < stop]


def test_all_29_published_scenes_are_there():
    assert len(PUBLISHED) == 29 and len({name for _, _, name in PUBLISHED}) == 29


@pytest.mark.parametrize("word", ["", "smoke"])
@pytest.mark.parametrize("module,argument", ALL, ids=lambda x: getattr(x, "__name__", x))
def test_config_resolves(module, argument, word):
    config = module.get_config(with_word(argument, word))
    if config.minutes:
        capture = CaptureSize(num_views=30, width=1200, height=800, num_points=2000)
        for name, value in choose(read_config(config), capture, find_step_cost("cpu", 2)).items():
            config.update_from_flattened_dict({name: value})
    settings = read_in_steps(config)
    stages = make_stages(settings)
    assert stages[0].start == 0 and stages[-1].stop == config.num_steps
    assert all(a.stop == b.start for a, b in itertools.pairwise(stages))
    assert all(stage.start < stage.stop for stage in stages)
    assert stages[-1].scale == 1.0 and stages[-1].kernel_size == config.blur.kernel_sizes[-1]
    assert settings.density.every <= settings.density.stop <= config.num_steps
    assert settings.loss.mask > 0 and scale_rates(settings.optim, config.num_steps).means > 0
    model = make_blur_model(settings, 3)
    assert max(stage.head for stage in stages) == len(model.kernel_sizes) - 1
    config.blur.enabled = False
    assert not any(stage.kernel_size for stage in make_stages(read_in_steps(config)))


@pytest.mark.parametrize("module,argument", ALL, ids=lambda x: getattr(x, "__name__", x))
def test_smoke_is_small(module, argument):
    config = module.get_config(with_word(argument, "smoke"))
    assert config.num_steps <= 20 and config.max_gaussians <= 5000
    for name in set(config) - {"num_steps", "max_gaussians"}:
        assert name in base.get_config()  # no field of its own at the top


@pytest.mark.parametrize("module,dataset,name", PUBLISHED, ids=lambda x: x if isinstance(x, str) else "")
def test_published_schedule_is_that_of_the_paper(module, dataset, name):
    row = published.pick(dataset, name)
    config = module.get_config(f"{name},published")
    settings = read_in_steps(config)
    expected = published_stages(row)
    stages = make_stages(settings)
    assert config.num_steps == int(row["iterations"]) and config.data.holdout == int(row["holdout"])
    for start, scale, kernel, stop in expected:
        inside = [stage for stage in stages if start <= stage.start < stop]
        assert inside[0].start == start and inside[-1].stop == stop
        assert {stage.scale for stage in inside} == {scale}
        assert {stage.kernel_size for stage in inside} <= {0, kernel} and inside[-1].kernel_size == kernel
    early = int(row["multiscale_steps"])
    without_blur = [(stage.start, stage.stop) for stage in stages if not stage.kernel_size]
    assert without_blur == [(0, 250), (early, early + 250)]
    assert {stage.network for stage in stages if stage.start >= early} == {int(row["second_network"])}
    density = settings.density
    assert (density.start, density.stop) == (600, min(34_900, config.num_steps))
    at = lambda step: thresholds_at(density, step, is_early=step < late_from(settings, stages))
    assert at(early + 1).grad == 2e-4 and at(early).grad == float(row["densify_grad_multiscale"])
    assert at(early + 1).min_opacity == float(row["min_opacity"])
    assert [step for step in range(0, 6000, 100) if is_reset_step(density, count_steps(settings, step))] == [3000]
    assert density.reset_every == 3000 and settings.sh_every == 1000
    assert config.optim.network == float(row["network_lr"]) and config.blur.use_rgbd == bool(int(row["use_rgbd"]))


@pytest.mark.parametrize("argument", ["blurball,published", "blurball"])
def test_num_steps_scales_the_stages(argument):
    config = deblur_nerf.get_config(argument)
    long = make_stages(read_in_steps(config))
    config.num_steps = config.num_steps // 10
    short = make_stages(read_in_steps(config))
    assert [(s.start, s.stop) for s in short] == [(round(s.start / 10), round(s.stop / 10)) for s in long]
    assert [(s.scale, s.kernel_size, s.head) for s in short] == [(s.scale, s.kernel_size, s.head) for s in long]


@pytest.mark.parametrize("module", [deblur_nerf, mip360_mixed])
def test_unknown_scene_lists_the_known_ones(module):
    with pytest.raises(ValueError, match="scene 'nowhere' came, expected one of"):
        module.get_config("nowhere")


@pytest.mark.parametrize("module,name", [(deblur_nerf, "blurball"), (mip360_mixed, "garden"), (procedural, "motion")])
def test_unknown_word_is_refused(module, name):
    """A misspelt `published` must not train something else."""
    with pytest.raises(ValueError, match="pubished"):
        module.get_config(f"{name},pubished")


def test_words_of_the_embedded_scenes():
    config = procedural.get_config("motion")
    world = config.synthetic
    assert (world.blur, world.layout, world.blur_scale, world.pose_noise_px) == ("motion", "still_life", 1.0, 0.0)
    assert (world.width, world.height, config.data.use_sharp) == (128, 84, False)
    config = procedural.get_config("relief,defocus,easy,large")
    world = config.synthetic
    assert (world.blur, world.layout, world.blur_scale) == ("defocus", "relief", 0.5)
    assert (world.width, world.height) == (192, 128)
    check_image_size(make_stages(read_in_steps(config)), 192, 128)
    assert procedural.get_config("corner,smoke").synthetic.blur == "motion"
    assert procedural.get_config("varied,flight").synthetic.layout == "flight"
    assert set(procedural.KINDS) == set(BLURS) and set(procedural.LAYOUTS) == set(LAYOUTS)
    for words in ("motion,defocus", "easy,hard", "small,large", "corner,relief,smoke"):
        with pytest.raises(ValueError, match="expected one of them"):
            procedural.get_config(words)


@pytest.mark.parametrize("words, is_light", [("motion", True), ("defocus", True), ("mixed", False), ("reduced", False)])
def test_photographs_that_a_program_reduced_are_blurred_in_values(words, is_light):
    assert procedural.get_config(words).blur.linear_light == is_light
    assert not mip360_mixed.get_config("garden").blur.linear_light
