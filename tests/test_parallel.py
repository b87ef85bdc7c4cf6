"""Two devices do what one does, and leave checkpoints that one can read."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax import parallel
from bags_jax.errors import UserError
from bags_jax.plan import count_devices
from bags_jax.training import first_state, make_job, train
from configs import procedural

ROOT = pathlib.Path(__file__).parents[1]


def make_config(num_devices):
    """Six steps of one stage, two views each; density control after 4."""
    config = procedural.get_config("motion,smoke")
    config.stages.scales, config.stages.stops, config.blur.kernel_sizes, config.blur.strides = (
        (0.5,),
        (1.0,),
        (3,),
        (1,),
    )
    config.num_steps, config.blur.warmup, config.max_gaussians = 6, 0.0, 512
    config.optim.quats = 0.0  # the gradient of a round Gaussian's is rounding alone, of which Adam makes a whole step
    config.log_every, config.num_devices, config.views_per_step = 1, num_devices, 2
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Working directory and last state by number of devices."""
    assert jax.local_device_count() == 2, "tests/conftest.py asks for two"
    folders = {num: tmp_path_factory.mktemp(f"devices_{num}") for num in (1, 2)}
    return {num: (folder, train(make_config(num), folder)) for num, folder in folders.items()}


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_same_loss_curve(runs):
    one, two = (rows_of(runs[num][0]) for num in (1, 2))
    assert [row["step"] for row in two] == list(range(1, 7))
    for a, b in zip(one, two, strict=True):
        assert a["num_gaussians"] == b["num_gaussians"] and a["num_intersections"] == b["num_intersections"]
        for name in ("total", "l1", "dssim", "mask", "psnr"):
            np.testing.assert_allclose(
                b[f"train/{name}"], a[f"train/{name}"], rtol=1e-5, err_msg=f"{name}, {a['step']}"
            )


def test_same_density_statistics_and_parameters(runs):
    one, two = (runs[num][1] for num in (1, 2))
    np.testing.assert_array_equal(two.alive, one.alive)
    assert float(jnp.sum(one.density.counts)) > 0
    np.testing.assert_array_equal(two.density.counts, one.density.counts)
    # The order of the sum over two views differs: one rounding each step, which Adam's division makes larger.
    scale = float(jnp.max(one.density.grad_norms))
    np.testing.assert_allclose(two.density.grad_norms, one.density.grad_norms, rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(two.density.max_radii, one.density.max_radii, rtol=1e-3, atol=1e-5)
    # Adam divides by the gradient's own size: one that is all rounding takes a whole step, this way or that. Few do.
    extent = make_job(make_config(1)).extent
    apart = np.abs(np.asarray(two.gaussians.means) - np.asarray(one.gaussians.means))
    assert np.mean(apart < 1e-5) > 0.99 and apart.max() < 6 * make_config(1).optim.means * extent


def test_state_stays_unreplicated(runs):
    state, shapes = runs[2][1], jax.eval_shape(lambda: first_state(make_job(make_config(2))))
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, shapes)


def test_checkpoint_of_two_devices_is_evaluated_on_one(runs):
    workdir = runs[2][0]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}"]
    command += [f"--compilation_cache={os.environ['JAX_COMPILATION_CACHE_DIR']}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == 6 and results["deblur_nerf"]["PSNR"] > 5


def test_run_of_two_devices_goes_on_on_one(runs, tmp_path):
    """Views per step are those that the run began with, whatever number of devices goes on with it."""
    config = make_config(2)
    config.views_per_step = 0
    config.checkpoint_every = 3
    train(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["views_per_step"] == 2
    again = make_config(1)
    again.views_per_step, again.checkpoint_every = 0, 3
    assert int(train(again, tmp_path).step) == 6


@pytest.mark.parametrize(
    "num_devices,views,message",
    [
        (3, 3, "num_devices is 3, but this machine has 2"),
        (2, 3, "views_per_step is 3, expected a multiple of 2 devices"),
    ],
)
def test_devices_that_do_not_fit(num_devices, views, message):
    config = make_config(num_devices)
    config.views_per_step = views
    with pytest.raises(UserError, match=message):
        count_devices(config)


@pytest.mark.parametrize("views, used", [(0, 2), (1, 1), (2, 2), (3, 1), (4, 2)])
def test_as_many_devices_as_can_share_the_views(views, used):
    """So that a run goes on, as it was, on a machine with more devices or fewer."""
    config = make_config(0)
    config.views_per_step = views
    assert count_devices(config) == used


def test_parallelize_sums_and_tells_devices_apart():
    def step(rank, state, shift):
        total = parallel.psum(rank + shift)
        return state + total, {"largest": parallel.pmax(rank)}

    mapped = parallel.parallelize(step, num_args=1, num_devices=2)
    state, metrics = mapped(parallel.ranks(2), parallel.replicate(jnp.float32(1), 2), jnp.int32(10))
    assert state.shape == () and float(state) == 22.0 and int(metrics["largest"]) == 1


def test_nothing_empty_is_mapped():
    """jaxlib 0.11.2 ends in a segmentation fault where an array of size 0 goes through a map over two devices."""
    state = {"full": jnp.float32(1), "empty": jnp.zeros((4, 0, 3))}
    step = lambda rank, state: (jax.tree.map(lambda x: x + 1, state), {"shape": state["empty"].shape[1]})
    mapped = parallel.parallelize(step, num_args=0, num_devices=2)
    full = parallel.without_empty(parallel.replicate(state, 2))
    mapped_full, _ = mapped(parallel.ranks(2), full)
    assert all([x.shape for x in jax.tree.leaves(each)] == [()] for each in (full, mapped_full))
    state = parallel.with_empty(mapped_full, state)
    assert float(state["full"]) == 2.0 and state["empty"].shape == (4, 0, 3)
