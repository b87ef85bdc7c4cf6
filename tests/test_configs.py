"""Every configuration loads, and its resolution schedule is the one that was published."""

import dataclasses
import itertools

import numpy as np
import pytest

from bags_jax import plan
from bags_jax.errors import UserError
from configs import base, custom, deblur_nerf, mip360_mixed, presets, procedural

PUBLISHED = [(deblur_nerf, "deblur", name) for name in presets.scenes("deblur")]
PUBLISHED += [(mip360_mixed, "mip360", name) for name in presets.scenes("mip360")]
ALL = [(base, ""), (custom, "")] + [(procedural, blur) for blur in ("motion", "defocus", "mixed", "none")]
ALL += [(procedural, words) for words in ("motion,corner,easy", "relief,large", "hard,small,defocus,still_life")]
ALL += [(procedural, f"{blur},published") for blur in ("motion", "mixed,large")]
ALL += [(module, name) for module, _, name in PUBLISHED]
ALL += [(module, f"{name},published") for module, _, name in PUBLISHED]


def with_word(argument, word):
    return ",".join(filter(None, (argument, word)))


def published_stages(row):
    """Start, scale and kernel of METHOD.md's table for one scene."""
    total, early = int(row["iterations"]), int(row["multiscale_steps"])
    rows = [(0, 0.25, 5), (3000, 0.5, 9), (6000, 1.0, 17), (early, 1.0, int(row["final_kernel"]))]
    return [(*r, stop) for r, stop in zip(rows, (3000, 6000, early, total), strict=True) if r[0] < stop]


def test_all_29_published_scenes_are_there():
    assert len(PUBLISHED) == 29 and len({name for _, _, name in PUBLISHED}) == 29


@pytest.mark.parametrize("word", ["", "smoke"])
@pytest.mark.parametrize("module,argument", ALL, ids=lambda x: getattr(x, "__name__", x))
def test_config_resolves(module, argument, word):
    config = module.get_config(with_word(argument, word))
    plan.check_counts(config)
    stages = plan.make_stages(config)
    assert stages[0].start == 0 and stages[-1].stop == config.num_steps
    assert all(a.stop == b.start for a, b in itertools.pairwise(stages))
    assert all(stage.start < stage.stop for stage in stages)
    assert stages[-1].scale == 1.0 and stages[-1].kernel_size == config.blur.kernel_sizes[-1]
    density = plan.make_density_plan(config, stages)
    assert density.every <= density.stop <= config.num_steps
    assert plan.make_objective(config).mask > 0 and plan.make_rates(config).means > 0
    network = plan.make_network(config, num_views=3)
    assert network is not None and max(stage.head for stage in stages) == len(network.kernel_sizes) - 1
    config.blur.enabled = False
    assert plan.make_network(config, num_views=3) is None
    assert not any(stage.kernel_size for stage in plan.make_stages(config))


@pytest.mark.parametrize("module,argument", ALL, ids=lambda x: getattr(x, "__name__", x))
def test_smoke_is_small(module, argument):
    config = module.get_config(with_word(argument, "smoke"))
    assert config.num_steps <= 20 and config.max_gaussians <= 5000
    for name in set(config) - {"num_steps", "max_gaussians"}:
        assert name in base.get_config()  # no field of its own at the top


@pytest.mark.parametrize("module,dataset,name", PUBLISHED, ids=lambda x: x if isinstance(x, str) else "")
def test_published_schedule_is_that_of_the_paper(module, dataset, name):
    row = presets.pick(dataset, name)
    config = module.get_config(f"{name},published")
    expected = published_stages(row)
    stages = plan.make_stages(config)
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
    density = plan.make_density_plan(config, stages)
    assert (density.start, density.stop) == (500, min(35_000, config.num_steps))
    assert density.threshold(early) == 2e-4
    assert density.threshold(early - 1) == float(row["densify_grad_multiscale"])
    assert density.rules_at(early).min_opacity == float(row["min_opacity"])
    assert density.reset_every == 3000 and plan.steps_of(config.sh_every, config.num_steps) == 1000
    assert density.rules_at(3000).max_radius == 0 and density.rules_at(3001).max_radius > 0
    assert config.loss.depth_tv == float(row["depth_tv"]) and config.loss.rgb_tv == float(row["rgb_tv"])
    assert config.optim.network == float(row["network_lr"]) and config.blur.use_rgbd == bool(int(row["use_rgbd"]))


@pytest.mark.parametrize("argument", ["blurball,published", "blurball"])
def test_num_steps_scales_the_stages(argument):
    config = deblur_nerf.get_config(argument)
    long = plan.make_stages(config)
    config.num_steps = config.num_steps // 10
    short = plan.make_stages(config)
    assert [(s.start, s.stop) for s in short] == [(round(s.start / 10), round(s.stop / 10)) for s in long]
    assert [(s.scale, s.kernel_size, s.head) for s in short] == [(s.scale, s.kernel_size, s.head) for s in long]


def test_stops_may_be_steps():
    config = base.get_config()
    config.num_steps, config.stages.stops, config.blur.warmup = 900, (100, 300, 900), 0.0
    assert [stage.stop for stage in plan.make_stages(config)] == [100, 300, 900]


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("blur.kernel_sizes", (5, 8, 17), "has 8, expected odd sizes"),
        ("blur.kernel_sizes", (5, -1, 17), "has -1, expected odd sizes"),
        ("blur.kernel_sizes", (5, 9), "has 2 values, expected 3"),
        ("blur.strides", (1, 0, 2), "expected strides >= 1"),
        ("stages.stops", (0.5, 0.4, 1.0), "expected rising steps that end at num_steps"),
        ("stages.stops", (0.1, 0.4, 0.9), "expected rising steps that end at num_steps"),
        ("stages.stops", (0.1, 1.0), "has 2 values, expected 3"),
        ("stages.scales", (0.5, 0.25, 1.0), "expected rising scales"),
        ("stages.scales", (0.25, 0.5, 2.0), "expected rising scales"),
        ("stages.scales", (), "stages.s"),
    ],
)
def test_schedule_that_does_not_fit(field, value, message):
    config = base.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message) as caught:
        plan.make_stages(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field, value",
    [
        ("data.background", ("white",)),
        ("data.mixed_factors", ("a", "b")),
        ("stages.stops", ("half", 0.5, 1)),
        ("stages.scales", (0.5, float("nan"), 1.0)),
        ("blur.kernel_sizes", (3, 5.5, 7)),
        ("blur.strides", (1.5, 1, 1)),
    ],
)
def test_lists_are_of_numbers(field, value):
    """Flags do not say: the items of a list have no type there."""
    config = base.get_config()
    plan.check_lists(config)
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"config\.{field} is \(.*expected (whole )?numbers"):
        plan.check_lists(config)


def test_terms_that_are_gone_are_told():
    config = base.get_config()
    plan.check_known(config)
    with config.unlocked():
        config.loss.width = 0.1
    with pytest.raises(UserError, match=r"config\.loss\.width, which is of an earlier version"):
        plan.check_known(config)


@pytest.mark.parametrize("field", plan.COUNTS)
def test_counts_are_at_least_one(field):
    config = base.get_config()
    config.update_from_flattened_dict({field: 0})
    with pytest.raises(UserError, match=rf"config\.{field} is 0, expected at least 1"):
        plan.check_counts(config)


@pytest.mark.parametrize("field", plan.POSITIVE + plan.NOT_NEGATIVE)
def test_rates_and_weights_are_not_negative(field):
    config = base.get_config()
    plan.check_weights(config)
    config.update_from_flattened_dict({field: type(config[field.split(".")[0]][field.split(".")[1]])(-1)})
    with pytest.raises(UserError, match=rf"config\.{field} is -1"):
        plan.check_weights(config)


def test_poses_that_would_never_move_and_seeds_that_do_not_fit():
    config = base.get_config()
    config.optim.poses_final = 0.0
    with pytest.raises(UserError, match="poses_final is 0, expected more"):
        plan.check_weights(config)
    config = base.get_config()
    config.seed = 2**31
    with pytest.raises(UserError, match="config.seed is 2147483648, expected 0 to"):
        plan.check_weights(config)


RATES = ("optim.means", "optim.sh_rest", "optim.poses")
OUT_OF_RANGE = [(field, value) for field in RATES for value in (float("nan"), float("inf"))]
OUT_OF_RANGE += [("init.opacity", 1.0), ("init.opacity", 0.0), ("loss.ssim", 1.5)]


@pytest.mark.parametrize("field, value", OUT_OF_RANGE)
def test_rates_are_finite_and_parts_are_parts(field, value):
    """A step looks at gradients and parameters before the update: no rate may make it something else."""
    config = base.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"config\.{field} is {value}, expected"):
        plan.check_weights(config)


def test_a_run_of_an_earlier_version_is_told():
    config = base.get_config()
    with config.unlocked():
        del config.optim["means_steps"]
    with pytest.raises(UserError, match="no optim.means_steps: it is of an earlier version"):
        plan.check_weights(config)


def test_rates_of_the_gaussians_belong_to_a_length():
    """A sixteenth of the steps: means go 8 times as fast, all else twice; longer runs are not slowed down."""
    config = base.get_config()
    for num_steps, means_gain, gain in ((1875, 8.0, 2.0), (30_000, 1.0, 1.0), (60_000, 1.0, 1.0)):
        config.num_steps = num_steps
        rates = plan.make_rates(config)
        assert rates.means == pytest.approx(means_gain * config.optim.means)
        assert rates.means_final == pytest.approx(means_gain * config.optim.means_final)
        for name in ("quats", "log_scales", "logit_opacities", "sh_dc", "sh_rest"):
            assert getattr(rates, name) == pytest.approx(gain * config.optim[name])
        assert rates.network == config.optim.network and rates.poses == config.optim.poses


def test_the_margin_is_as_far_as_kernels_reach():
    config = base.get_config()
    stages = plan.make_stages(config)
    assert [(s.kernel_size, plan.margin_of(config, s)) for s in stages] == [(0, 0), (5, 2), (9, 4), (17, 8)]
    config.blur.margin = False
    assert [plan.margin_of(config, s) for s in stages] == [0, 0, 0, 0]


def test_images_too_small_for_a_stage():
    config = base.get_config()
    stages = plan.make_stages(config)
    plan.check_sizes(stages, 600, 400)
    with pytest.raises(UserError, match="images of 60 x 24 px have a side of 6 px at scale 0.25, expected at least 8"):
        plan.check_sizes(stages, 60, 24)


@pytest.mark.parametrize("module", [deblur_nerf, mip360_mixed])
def test_unknown_scene_names_those_there_are(module):
    with pytest.raises(ValueError, match="scene 'nowhere' came, expected one of"):
        module.get_config("nowhere")


@pytest.mark.parametrize("module,name", [(deblur_nerf, "blurball"), (mip360_mixed, "garden"), (procedural, "motion")])
def test_unknown_word_is_refused(module, name):
    """A misspelt `published` must not train something else."""
    with pytest.raises(ValueError, match="pubished"):
        module.get_config(f"{name},pubished")


def test_words_of_the_embedded_scenes():
    data = procedural.get_config("motion").data
    assert (data.blur, data.layout, data.blur_scale, data.pose_noise_px) == ("motion", "still_life", 1.0, 0.0)
    assert (data.width, data.height, data.use_sharp) == (128, 84, False)
    config = procedural.get_config("relief,defocus,easy,large")
    assert (config.data.blur, config.data.layout, config.data.blur_scale) == ("defocus", "relief", 0.5)
    assert (config.data.width, config.data.height) == (192, 128)
    plan.check_sizes(plan.make_stages(config), 192, 128)
    assert procedural.get_config("corner,smoke").data.blur == "motion"
    for words in ("motion,defocus", "easy,hard", "small,large", "corner,relief,smoke"):
        with pytest.raises(ValueError, match="expected one of them"):
            procedural.get_config(words)


def test_embedded_scenes_are_loaded_as_asked(monkeypatch):
    asked = []
    tiny = plan.make_scene("none", width=16, height=16, num_train=2, num_test=0, num_points=0)
    monkeypatch.setattr(plan, "make_scene", lambda blur, **options: asked.append((blur, options)) or tiny)
    config = procedural.get_config("defocus,corner,easy")
    config.data.pose_noise_px = 0.7
    assert plan.load(config) is tiny
    blur, options = asked.pop()
    assert blur == "defocus" and options == {
        name: getattr(config.data, name)
        for name in (
            "layout",
            "blur_scale",
            "pose_noise_px",
            "width",
            "height",
            "num_train",
            "num_test",
            "num_points",
            "seed",
        )
    }
    with config.unlocked():  # runs from before there were layouts
        for name in ("layout", "blur_scale", "pose_noise_px", "use_sharp"):
            del config.data[name]
    assert plan.load(config) is tiny
    _, options = asked.pop()
    assert (options["layout"], options["blur_scale"], options["pose_noise_px"]) == ("still_life", 1.0, 0.0)


def test_oracle_is_loaded_sharp_or_refused(monkeypatch):
    config = procedural.get_config("motion,smoke")
    config.data.use_sharp = True
    scene = plan.load(config)
    np.testing.assert_array_equal(scene.images, scene.sharp_images)
    assert scene.names[scene.train_ids[0]] == "train_000.png"
    monkeypatch.setattr(plan, "make_scene", lambda *_, **__: dataclasses.replace(scene, sharp_images=None))
    with pytest.raises(UserError, match="use_sharp is set, but no sharp truth"):
        plan.load(config)


@pytest.mark.parametrize("periods, length", [((100, 50, 1000), 50), ((100, 100, 10), 10), ((100, 30, 1000), 0)])
def test_loops_of_known_length_waste_no_rounds(periods, length):
    config = base.get_config()
    config.density.every, config.log_every, config.checkpoint_every = periods
    assert plan.loop_length(config) == length
