"""docs/extending_blur_model.md: the code of the page works as it is printed there, as a second blur model."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.protocol import BlurModel, check_blur_model
from bags_jax.blur_model.statistics import kernel_statistics
from bags_jax.config import load_config
from bags_jax.errors import UserError
from bags_jax.evaluation import evaluate
from bags_jax.ops.blur import blur
from bags_jax.ops.blur.kernels import resize_taps
from bags_jax.ops.blur.reference import apply_kernels, every_kernel
from bags_jax.run import open_run
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.settings import Optim
from bags_jax.training import train

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "extending_blur_model.md").read_text()
SIZES = (3, 5)


def read_block(caption):
    """Returns the text of a code block of the page."""
    (text,) = re.findall(rf"```\{{code-block\}} \w+\n:caption: {re.escape(caption)}\n\n(.*?)```", PAGE, flags=re.DOTALL)
    return text


@pytest.fixture(scope="module")
def view_kernels(tmp_path_factory):
    """The page's module."""
    path = tmp_path_factory.mktemp("page") / "view_kernels.py"
    path.write_text(read_block("view_kernels.py"))
    spec = importlib.util.spec_from_file_location("view_kernels", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "view_kernels", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def trained(view_kernels, tmp_path_factory):
    """The run of the page's script: its folder, the names of the script, and the hand-overs: arguments, before, after."""
    folder, hand_overs = tmp_path_factory.mktemp("script"), []
    (folder / "train_view_kernels.py").write_text(read_block("train_view_kernels.py"))
    hand_over = view_kernels.ViewKernels.hand_over

    def record(self, params, **arguments):
        after = hand_over(self, params, **arguments)
        hand_overs.append((arguments, *jax.device_get((params, after))))
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(view_kernels.ViewKernels, "hand_over", record)
        names = runpy.run_path("train_view_kernels.py")
    return folder / "runs" / "view_kernels", names, hand_overs


def make_params(model):
    """Parameters with another kernel and mask in every view."""
    params = model.init_params(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(params))
    return {name: x + jax.random.normal(key, x.shape) for key, (name, x) in zip(keys, params.items(), strict=True)}


def test_is_a_blur_model(view_kernels):
    model = view_kernels.ViewKernels(4, SIZES)
    assert isinstance(model, BlurModel) and hash(model) == hash(view_kernels.ViewKernels(4, SIZES))
    groups = model.rate_groups(model.init_params(jax.random.key(0)))
    assert groups == {"logits_0": "table", "mask_0": "mask", "logits_1": "table", "mask_1": "mask"}


def test_unfit_models_are_refused_in_one_line(view_kernels):
    class WithoutRates:
        init_params = field = hand_over = lambda self: None

    class WithList(view_kernels.ViewKernels):
        def init_params(self, key):
            return [jnp.zeros(3)]

    class Unhashable(view_kernels.ViewKernels):
        __hash__ = None

    for model, message in (
        (WithoutRates(), "the blur model WithoutRates has no rate_groups: expected the methods init_params, field"),
        (Unhashable(4, SIZES), "the blur model Unhashable cannot be hashed"),
        (WithList(4, SIZES), "init_params of the blur model WithList returned a list, expected a dict"),
    ):
        with pytest.raises(UserError, match=message):
            check_blur_model(model)


@pytest.mark.parametrize("head, stride", [(0, 1), (1, 2)])
def test_field_is_the_kernel_and_the_mask_of_the_view(view_kernels, head, stride):
    model = view_kernels.ViewKernels(4, SIZES)
    params, view = make_params(model), 2
    render = jax.random.uniform(jax.random.key(3), (10, 12, 3))
    field = jax.jit(model.field, static_argnames="head")(
        params, jnp.int32(view), jnp.zeros((10 // stride, 12 // stride, 4)), head=head
    )
    kernel = jax.nn.softmax(params[f"logits_{head}"][view])
    expected = jnp.broadcast_to(kernel[:, None, None], (SIZES[head] ** 2, 10 // stride, 12 // stride))
    np.testing.assert_allclose(every_kernel(field), expected, rtol=1e-5)
    mask = jax.nn.sigmoid(params[f"mask_{head}"][view])
    np.testing.assert_allclose(field.mask, mask, rtol=1e-6)
    blurred, moments = blur(render, field, stride=stride)
    filtered = jnp.moveaxis(apply_kernels(jnp.moveaxis(render, -1, 0), expected, stride), 0, -1)
    np.testing.assert_allclose(blurred, (1 - mask) * render + mask * filtered, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.centroid[:, 0, 0], kernel_statistics(kernel).centroid, atol=1e-5)


def test_starts_nearly_sharp_with_open_masks(view_kernels):
    model = view_kernels.ViewKernels(4, SIZES)
    for head, side in enumerate(SIZES):
        field = model.field(model.init_params(jax.random.key(0)), jnp.int32(1), jnp.zeros((4, 4, 4)), head=head)
        assert (every_kernel(field)[side * side // 2] > 0.9).all() and (field.mask > 0.9).all()


def test_hand_over_enlarges_the_kernels(view_kernels):
    model = view_kernels.ViewKernels(4, SIZES)
    params = make_params(model)
    after = model.hand_over(params, source=0, target=1, zoom=2.0)
    np.testing.assert_allclose(after["logits_1"], params["logits_0"] @ resize_taps(3, 5, 2.0).T, rtol=1e-6)
    np.testing.assert_array_equal(after["mask_1"], params["mask_0"])
    assert after["logits_0"] is params["logits_0"] and after["mask_1"] is not params["mask_0"]


@pytest.mark.slow
def test_run_of_the_page_trains_and_is_evaluated(view_kernels, trained):
    workdir, names, _ = trained
    assert names["results"]["step"] == 12 and 5 < names["results"]["deblur_nerf"]["PSNR"] < 60
    assert names["results"]["no_truth"]["reblur_PSNR"] > 5
    assert len(list((workdir / "blur").glob("*_kernels.png"))) == len(list((workdir / "blur").glob("*_mask.png"))) == 4
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["train/mask"] < 1 and np.isfinite(row["train/total"]) for row in rows)
    run = open_run(workdir, make_model=view_kernels.make_model)
    assert isinstance(run.model, view_kernels.ViewKernels) and run.model.num_views == 4
    params, start = run.state.network["first"], run.model.init_params(jax.random.key(0))
    assert all((params[name] != start[name]).any() for name in start), "all parameters are trained"


@pytest.mark.slow
def test_training_hands_kernels_over(view_kernels, trained):
    """Once, where the second stage begins, from the kernels that the first stage has trained."""
    ((arguments, before, after),) = trained[2]
    start = view_kernels.ViewKernels(4, SIZES).init_params(jax.random.key(0))
    assert arguments == {"source": 0, "target": 1, "zoom": 2.0}
    assert (before["logits_0"] != start["logits_0"]).any() and (after["logits_1"] != start["logits_1"]).any()
    np.testing.assert_array_equal(before["logits_1"], start["logits_1"])
    last = open_run(trained[0], make_model=view_kernels.make_model).state.network["first"]
    apart = np.abs(last["logits_1"] - after["logits_1"]).max()
    assert 0 < apart < 0.2 * np.abs(start["logits_1"] - after["logits_1"]).max(), "the second stage starts from them"


def test_optimizers_use_the_rate_groups(view_kernels):
    """Adam's first step is the rate, whatever the size of the gradient."""
    model, rates = view_kernels.ViewKernels(4, SIZES), Optim(network=1e-3, table_gain=7.0, mask_gain=0.3)
    optimizer = make_optimizers(rates, model, restart=0, num_steps=100).network
    params = {"first": make_params(model)}
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params))
    for name, update in updates["first"].items():
        np.testing.assert_allclose(update, -1e-3 * (0.3 if name.startswith("mask") else 7.0), rtol=1e-4, err_msg=name)


def test_unknown_rate_group_is_one_line_and_leaves_no_trace(view_kernels, tmp_path):
    class Misspelt(view_kernels.ViewKernels):
        def rate_groups(self, params):
            return dict.fromkeys(params, "tabel")

    model = dataclasses.replace(Misspelt(4, SIZES))
    message = "Misspelt.rate_groups gives 'tabel', expected network, table or mask"
    with pytest.raises(UserError, match=message) as caught:
        train(load_config("procedural:motion,smoke"), tmp_path / "run", make_model=lambda *_: model)
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_run_of_another_model_is_one_line(trained):
    with pytest.raises(UserError, match="12 cannot be read .*another version or blur model") as caught:
        evaluate(trained[0])
    assert "\n" not in str(caught.value)
