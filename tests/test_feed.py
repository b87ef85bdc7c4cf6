"""Photographs that stay on the host, or in a file: the same training, without the memory."""

import gc
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from captures import write_colmap, write_photos

from bags_jax import feed
from bags_jax.config import read_config
from bags_jax.data import load_scene
from bags_jax.data.spool import Spool
from bags_jax.errors import UserError
from bags_jax.feed import Feed, make_feed
from bags_jax.job import make_job
from bags_jax.step import view_at
from bags_jax.training import train
from configs import procedural


def make_config(**changes):
    """12 steps of two image scales, with events every 6."""
    config = procedural.get_config("motion,smoke")
    config.num_devices = config.views_per_step = 2
    config.blur.enabled = False  # compiles faster
    config.optim.poses = config.optim.exposures = 0.0
    config.density.every = config.log_every = config.checkpoint_every = 6
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_training_from_the_host_is_equal_bit_for_bit(tmp_path, monkeypatch):
    states = {}
    for place in ("device", "host"):
        monkeypatch.setattr(feed, "MOST_BYTES", 3 * 2 * 24 * 32 * 3)  # three steps of two photographs
        states[place] = train(make_config(**{"data.resident": place}), tmp_path / place)
    jax.tree.map(np.testing.assert_array_equal, states["device"], states["host"])
    assert int(states["host"].step) == 12 and np.any(np.asarray(states["host"].gaussians.sh_dc))


def test_the_feed_knows_the_views_that_a_step_draws():
    job = make_job(read_config(make_config(**{"data.resident": "host", "num_devices": 1})))
    found = make_feed(job)
    assert found is not None and found.most_steps == 6 and found.num_slots == 4
    seed, places = jnp.int32(job.settings.seed), range(2 * 5, 2 * 6)  # of step 5
    assert found.views_of(5, 6).tolist() == sorted({int(view_at(seed, jnp.int32(place), 4)) for place in places})


@pytest.mark.parametrize("photographs, steps", [(1, 1), (2, 1), (4, 2), (7, 3), (11, 3), (12, 6), (100, 6)])
def test_a_dispatch_has_as_many_steps_as_fit(photographs, steps, monkeypatch):
    monkeypatch.setattr(feed, "MOST_BYTES", photographs * 24 * 32 * 3)
    found = make_feed(make_job(read_config(make_config(**{"data.resident": "host"}))))
    assert found is not None and found.most_steps == steps


def test_auto_asks_for_the_memory_of_the_device(monkeypatch):
    job = make_job(read_config(make_config()))
    needed = 4 * 3 * (24 * 32 + 12 * 16)
    for free, expected in ((4 * needed, type(None)), (4 * needed - 1, Feed), (None, type(None))):
        monkeypatch.setattr(feed, "find_free_memory", lambda free=free: free)
        assert isinstance(make_feed(job), expected)


def test_an_unknown_place_is_one_line(tmp_path):
    with pytest.raises(UserError, match="config.data.resident is 'disk', expected one of auto, device, host"):
        train(make_config(**{"data.resident": "disk"}), tmp_path)


def test_spooled_arrays_are_arrays(tmp_path):
    spool = Spool(tmp_path / "new")
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 255, shape).astype(np.uint8) for shape in ((5, 7, 3), (4096, 3), (0, 3), (2, 2, 3))]
    kept = [spool.keep(array) for array in arrays]
    for array, found in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
    assert list((tmp_path / "new").iterdir()) == []  # the file has no name
    with pytest.raises(ValueError, match="read-only"):
        kept[0][0] = 1
    del spool
    gc.collect()
    np.testing.assert_array_equal(kept[1], arrays[1])  # the arrays hold their pages


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="do not fit into memory.*No space left on device"):
        Spool(tmp_path).keep(np.ones((3, 3), np.uint8))


def test_a_spooled_capture_is_the_same_scene(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "capture"
    write_colmap(root)
    write_photos(root / "images")
    scene, spooled = load_scene(root), load_scene(root, most_bytes=10)
    assert scene.spool is None and spooled.spool is not None
    for a, b in zip(scene.images, spooled.images, strict=True):
        np.testing.assert_array_equal(a, b)
    assert pathlib.Path(tmp_path / "cache" / "bags_jax" / "photographs").is_dir()
