"""The suite `ablations`: its configurations differ as named, its two blur models equal slow references, and its table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from bags_jax.blur_model.protocol import BlurModel, check_blur_model
from bags_jax.config import read_config
from bags_jax.errors import UserError
from bags_jax.job import make_blur_model
from bags_jax.ops.blur import blur
from bags_jax.ops.blur.reference import every_kernel
from bags_jax.schedule import make_stages
from bags_jax.settings import in_steps
from experiments.benchmarks.quality import suites, tables
from experiments.benchmarks.quality.ablations import ABLATIONS, find_make_model
from experiments.benchmarks.quality.blur_models import DeformableKernels, GlobalKernels

(CASE,) = suites.find_cases("ablations", ["still_life-motion-hard"])
CHANGED = {  # of the default, by method
    "no-mask": {"blur.use_mask": False, "loss.mask": 0.0},
    "no-rgbd": {"blur.use_rgbd": False},
    "no-position": {"blur.use_position": False},
    "no-embedding": {"blur.use_embedding": False},
    "no-table": {"blur.use_table": False},
    "no-view": {"blur.use_embedding": False, "blur.use_table": False},
    "one-scale": {
        "stages.scales": (1.0,),
        "stages.stops": (1.0,),
        "blur.kernel_sizes": (9,),
        "blur.strides": (2,),
    },
    "full-trunk": {"blur.growing_trunk": False},
    "kernel-5": {"blur.kernel_sizes": (3, 3, 5)},
    "kernel-17": {"blur.kernel_sizes": (5, 9, 17)},
    "kernel-25": {"blur.kernel_sizes": (7, 13, 25)},
    "points-100": {"synthetic.num_points": 100},
    "points-1000": {"synthetic.num_points": 1000},
    "points-random": {"synthetic.num_points": 0, "init.num_random": 1500},
    "global-kernel": {},
    "deformable": {},
    "poses-kept": {"optim.poses": 0.0},
}
H, W, VIEW = 10, 12, 1


def flat(group, prefix=""):
    """Settings by dotted name."""
    found = {}
    for name, value in vars(group).items():
        found |= flat(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else {f"{prefix}{name}": value}
    return found


def settings_of(method, **options):
    return read_config(suites.make_config(CASE, method, 150, **options))


# --- the suite -------------------------------------------------------------------------------------------------------


def test_every_ablation_is_listed_here():
    assert CHANGED.keys() == ABLATIONS.keys()


@pytest.mark.parametrize("method", ABLATIONS)
def test_an_ablation_is_the_default_with_the_change_that_it_names(method):
    default, changed = flat(settings_of("default")), flat(settings_of(method))
    assert {name: changed[name] for name in changed if changed[name] != default[name]} == CHANGED[method]
    for options in ({}, {"smoke": True}):
        settings = settings_of(method, **options)
        settings = in_steps(settings, settings.num_steps)
        assert make_stages(settings)[-1].stop == settings.num_steps
        model = (find_make_model(method) or make_blur_model)(settings, 3)
        assert isinstance(model, BlurModel)
        check_blur_model(model)


def test_cases_and_methods_of_the_suite():
    cases = suites.find_cases("ablations", ["all"])
    assert [case.name for case in cases] == [f"still_life-{kind}-hard" for kind in ("motion", "defocus", "mixed")]
    (other,) = suites.find_cases("ablations", ["corner-motion-easy"])
    assert other.suite == "ablations" and suites.trained_as(other, "oracle")[0].name == "corner-none"
    methods = suites.find_methods("ablations", ["all"])
    assert methods == ("plain", "default", *ABLATIONS, "oracle")
    assert not set(ABLATIONS) & set(suites.find_methods("procedural", ["all"]))
    for suite, name in (("ablations", "published"), ("ablations", "no-mind"), ("blurball", "no-mask")):
        with pytest.raises(UserError, match=f"--methods has '{name}', expected all, or some of plain"):
            suites.find_methods(suite, [name])
    with pytest.raises(UserError, match="--cases has 'attic', expected all"):
        suites.find_cases("ablations", ["attic"])


def test_table_of_the_ablations():
    """Differences are to the default of the same seed; what is not done is missing."""
    figures = {"plain": (20.0, 21.0), "default": (24.0, 24.0), "no-mask": (23.0, 23.5), "oracle": (25.0, 25.0)}
    rows = {
        (CASE.name, method, 150 + i): {"deblur_nerf": {"PSNR": psnr}}
        for method, values in figures.items()
        for i, psnr in enumerate(values)
    }
    methods = ["plain", "default", "no-mask", "no-rgbd", "oracle"]
    table = tables.all_tables(tables.Results([CASE], methods, [150, 151], rows))[0]
    cells = {row[0]: row[2:] for row in table.rows}
    assert table.header[2:] == (f"{CASE.name}: PSNR, dB", "over default, dB", "share closed, %")
    assert cells["no-mask"] == ["23.25 ± 0.35", "-0.75 ± 0.35", "61 ± 2"]
    assert cells["default"] == ["24.00 ± 0.00", "-", "78 ± 4"]
    assert cells["plain"] == ["20.50 ± 0.71", "-3.50 ± 0.71", "-"]
    assert cells["no-rgbd"] == ["missing", "missing", "missing"]


# --- the blur models -------------------------------------------------------------------------------------------------


def perturb(params):
    """Parameters with other values in every view and layer."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [x + 0.5 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noise)


def read_between(image, x, y):
    """The image at a place between its pixels; beyond the border the last pixel."""
    return np.stack(
        [scipy.ndimage.map_coordinates(channel, [[y], [x]], order=1, mode="nearest")[0] for channel in image]
    )


@pytest.mark.parametrize("head", [0, 1])
def test_deformable_kernels_read_the_render_at_their_points(head):
    model = DeformableKernels(3, (5, 9), (0.5, 1.0), num_points=4, width=8, num_layers=2, embedding_width=4)
    params = jax.device_get(perturb(model.init_params(jax.random.key(0))))
    render = np.random.default_rng(2).random((H, W, 3), np.float32)
    blurred, _ = blur(jnp.asarray(render), model.field(params, jnp.int32(VIEW), jnp.zeros((H, W, 4)), head=head))

    reach, image = (2, 4)[head], np.moveaxis(render, -1, 0)
    expected = np.zeros_like(render)
    for row in range(H):
        for column in range(W):
            waves = []
            for place, count in ((row, H), (column, W)):
                angles = np.pi * 2.0 ** np.arange(4) * ((place + 0.5) / count * 2 - 1)
                waves += [*np.sin(angles), *np.cos(angles)]
            x = np.array([*params["embedding"][VIEW], *waves])
            for i in range(3):
                x = (np.maximum(x, 0) if i else x) @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
            x = x.reshape(4, 3)
            offsets = reach * np.tanh((0.5, 1.0)[head] * (params["points"][VIEW] + x[:, :2]) / reach)
            weights = np.exp(params["weights"][VIEW] + x[:, 2])
            weights = weights / weights.sum()
            for (dx, dy), weight in zip(offsets, weights, strict=True):
                expected[row, column] += weight * read_between(image, column + dx, row + dy)
    np.testing.assert_allclose(blurred, expected, atol=3e-4)  # LEAST_WEIGHT in every tap


def test_deformable_kernels_start_nearly_sharp_and_move():
    """The points get a gradient through the taps that they are spread over."""
    model = DeformableKernels(3, (5,), (1.0,), width=8, num_layers=1, embedding_width=4)
    params = model.init_params(jax.random.key(0))
    image = jnp.asarray(np.random.default_rng(0).random((H, W, 3)), jnp.float32)

    def brightness(params):
        field = model.field(params, jnp.int32(VIEW), jnp.zeros((H, W, 4)), head=0)
        return jnp.sum(blur(image, field)[0][3:5, 3:5])

    kernels = every_kernel(model.field(params, jnp.int32(VIEW), jnp.zeros((H, W, 4)), head=0))
    np.testing.assert_allclose(kernels.sum(axis=0), 1.0, atol=1e-5)
    assert (kernels[12] > 0.3).all()
    compiled = jax.jit(jax.value_and_grad(brightness))
    gradient = compiled(params)[1]["points"]
    assert (gradient[VIEW] != 0).all() and not gradient[0].any()
    step = 1e-2
    for point, axis in ((0, 0), (3, 1)):
        moved = [{**params, "points": params["points"].at[VIEW, point, axis].add(d)} for d in (-step, step)]
        numeric = (compiled(moved[1])[0] - compiled(moved[0])[0]) / (2 * step)
        np.testing.assert_allclose(gradient[VIEW, point, axis], numeric, atol=5e-3)


def test_global_kernels_are_those_of_the_view():
    model = GlobalKernels(3, (3, 5))
    params = perturb(model.init_params(jax.random.key(0)))
    field = model.field(params, jnp.int32(VIEW), jnp.zeros((H, W, 4)), head=0)
    logits = np.clip(np.asarray(params["kernels_0"][VIEW], np.float64), -5, 5)
    taps = np.exp(logits - 5) - 0.99 * np.exp(-10.0)
    expected = np.broadcast_to((taps / taps.sum())[:, None, None], (9, H, W))
    np.testing.assert_allclose(every_kernel(field), expected, rtol=1e-4)
    np.testing.assert_allclose(field.mask, 1 / (1 + np.exp(-params["masks_0"][VIEW])), rtol=1e-5)
    after = model.hand_over(params, source=0, target=1, zoom=1.0)
    centre = after["kernels_1"].reshape(3, 5, 5)[:, 1:4, 1:4]
    np.testing.assert_allclose(centre, params["kernels_0"].reshape(3, 3, 3), rtol=1e-6)
    assert model.rate_groups(params) == {
        f"{a}_{i}": b for i in (0, 1) for a, b in (("kernels", "table"), ("masks", "mask"))
    }
