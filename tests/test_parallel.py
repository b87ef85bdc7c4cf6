"""Two devices train as one device does, and write checkpoints that one device can read."""

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
from bags_jax.config import read_config
from bags_jax.errors import UserError
from bags_jax.job import first_state, make_job
from bags_jax.parallel import count_devices
from bags_jax.scene.initialize import with_optimizers
from bags_jax.training import make_job_optimizers, notes, train
from configs import procedural

ROOT = pathlib.Path(__file__).parents[1]


def make_config(num_devices):
    """Six steps of one stage, two views each; density control after 4."""
    config = procedural.get_config("motion,smoke")
    config.stages.scales, config.stages.stops = (0.5,), (1.0,)
    config.blur.kernel_sizes, config.blur.strides = (3,), (1,)
    config.num_steps, config.blur.warmup, config.max_gaussians = 6, 0.0, 512
    config.optim.quats = 0.0  # for a round Gaussian the gradient is rounding noise, which Adam enlarges to a whole step
    config.log_every, config.num_devices, config.views_per_step = 1, num_devices, 2
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Working directory and last state by number of devices."""
    assert jax.local_device_count() == 2, "tests/conftest.py sets two"
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
    # The sum over two views has another order: one rounding in each step, which Adam's division enlarges.
    scale = float(jnp.max(one.density.grad_norms))
    np.testing.assert_allclose(two.density.grad_norms, one.density.grad_norms, rtol=1e-3, atol=1e-5 * scale)
    np.testing.assert_allclose(two.density.max_radii, one.density.max_radii, rtol=1e-3, atol=1e-5)
    # Adam divides by the size of the gradient: where it is rounding noise, the step is a whole one in any direction. Rare.
    extent = make_job(read_config(make_config(1))).extent
    apart = np.abs(np.asarray(two.gaussians.means) - np.asarray(one.gaussians.means))
    assert np.mean(apart < 1e-5) > 0.99 and apart.max() < 6 * make_config(1).optim.means * extent


def test_state_stays_unreplicated(runs):
    job = make_job(read_config(make_config(2)))
    state, shapes = runs[2][1], jax.eval_shape(lambda: with_optimizers(first_state(job), make_job_optimizers(job)))
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


def test_run_of_two_devices_continues_on_one(runs, tmp_path):
    """The views per step stay those of the run, whatever the number of devices."""
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
    with pytest.raises(UserError, match=message):
        count_devices(num_devices, views)


@pytest.mark.parametrize("views, used", [(0, 2), (1, 1), (2, 2), (3, 1), (4, 2)])
def test_as_many_devices_as_can_share_the_views(views, used):
    """A run continues unchanged on a machine with more or fewer devices."""
    assert count_devices(0, views) == used


def test_unused_devices_are_noted():
    job = make_job(read_config(make_config(0)))
    assert notes(job, 2, ()) == job.scene.notes == ()
    (note,) = notes(job, 1, ())
    assert note == "1 of 2 devices are used: more cannot share 2 views a step"
    assert notes(make_job(read_config(make_config(1))), 1, ()) == ()  # the number was chosen


def test_platform_that_jax_lacks_is_one_line(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nand more")

    monkeypatch.setattr(jax, "local_device_count", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="JAX finds no device with JAX_PLATFORMS=cuda: unset it, or install") as caught:
        count_devices(0, 0)
    assert "\n" not in str(caught.value)


def test_parallelize_sums_over_devices_and_numbers_them():
    def step(rank, state, shift):
        total = parallel.psum(rank + shift)
        return state + total, {"largest": parallel.pmax(rank)}

    mapped = parallel.parallelize(step, num_args=1, num_devices=2)
    state, metrics = mapped(parallel.ranks(2), parallel.replicate(jnp.float32(1), 2), jnp.int32(10))
    assert state.shape == () and float(state) == 22.0 and int(metrics["largest"]) == 1


def test_empty_arrays_are_not_mapped():
    """jaxlib 0.11.2 crashes if an array of size 0 is mapped over two devices."""
    state = {"full": jnp.float32(1), "empty": jnp.zeros((4, 0, 3))}
    step = lambda rank, state: (jax.tree.map(lambda x: x + 1, state), {"shape": state["empty"].shape[1]})
    mapped = parallel.parallelize(step, num_args=0, num_devices=2)
    full = parallel.without_empty(parallel.replicate(state, 2))
    mapped_full, _ = mapped(parallel.ranks(2), full)
    assert all([x.shape for x in jax.tree.leaves(each)] == [()] for each in (full, mapped_full))
    state = parallel.with_empty(mapped_full, state)
    assert float(state["full"]) == 2.0 and state["empty"].shape == (4, 0, 3)
