"""Checkpoints: what comes back, and what becomes of damaged ones."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.checkpoint import Checkpoints
from bags_jax.errors import UserError
from bags_jax.scene.initialize import init_state
from bags_jax.scene.optimizer import Optimizers, Rates, make_optimizers

NETWORK = BlurProposalNetwork(
    num_views=2, kernel_sizes=(3,), width=4, embedding_width=4, conv_width=4, feature_width=4, strides=(1,)
)
RATES = Rates(1e-4, 1e-5, 1e-3, 5e-3, 0.05, 2.5e-3, 1e-4, 5e-3, 5e-4, 0.5, 1.0, 1.0)


@pytest.fixture(scope="module")
def optimizers() -> Optimizers:
    return make_optimizers(RATES, restart=0, num_steps=10)


def make_state(optimizers, *, capacity=16, step=0, network=None, sh_degree=1):
    points = np.random.default_rng(step).normal(size=(10, 3)).astype(np.float32)
    state = init_state(
        points, np.abs(points) % 1, network, optimizers, capacity=capacity, num_views=2, sh_degree=sh_degree
    )
    return dataclasses.replace(state, step=jnp.int32(step))


def template_of(state):
    return jax.eval_shape(lambda: state)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class FullDisk:
    """Stands before a manager of checkpoints whose disk is full."""

    def __init__(self, manager, fails_in: str):
        self._manager, self._fails_in, self.is_closed = manager, fails_in, False

    def __getattr__(self, name):
        def fail(*_, **__):
            raise ValueError("OUT_OF_RANGE: No space left on device\nSource locations: ...")

        return fail if name == self._fails_in else getattr(self._manager, name)

    def close(self):
        self.is_closed = True
        self._manager.close()


@pytest.mark.parametrize("fails_in", ["save", "wait_until_finished"])
def test_a_full_disk_is_told_in_one_line(optimizers, tmp_path, fails_in):
    checkpoints = Checkpoints(tmp_path)
    checkpoints._manager = disk = FullDisk(checkpoints._manager, fails_in)
    says = r"cannot be written to .*No space left on device\): make room"
    with pytest.raises(UserError, match=says) as caught, checkpoints:
        checkpoints.save(make_state(optimizers))
    assert "\n" not in str(caught.value) and disk.is_closed


def test_a_full_disk_does_not_hide_what_was_wrong_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints._manager = disk = FullDisk(checkpoints._manager, "wait_until_finished")
    with pytest.raises(UserError, match="the loss is not finite"), checkpoints:
        raise UserError("the loss is not finite")
    assert disk.is_closed


def write(folder, *states):
    with Checkpoints(folder, keep=5) as checkpoints:
        for state in states:
            checkpoints.save(state)
    return folder / "checkpoints"


def contents(folder):
    """Every file and its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(folder, state, match):
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match=match) as caught:
        checkpoints.restore(template_of(state))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network", [None, NETWORK], ids=["plain", "blur"])
@pytest.mark.parametrize("sh_degree", [0, 1])
def test_all_comes_back(tmp_path, optimizers, network, sh_degree):
    state = make_state(optimizers, step=3, network=network, sh_degree=sh_degree)
    write(tmp_path, state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(template_of(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(restored))
    assert_same(restored, state)


def test_another_number_of_gaussians_comes_back(tmp_path, optimizers):
    """Also into the arrays that are empty, which are not saved."""
    state = make_state(optimizers, capacity=24, step=3, sh_degree=0)
    write(tmp_path, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(template_of(make_state(optimizers, capacity=16, sh_degree=0))), state)


def test_what_the_template_leaves_out_is_left_out(tmp_path, optimizers):
    """Whatever optimiser wrote it: that is how a run is evaluated."""
    state = make_state(optimizers, step=3, network=NETWORK)
    write(tmp_path, state)
    bare = {"gaussians_opt": (), "network_opt": (), "poses_opt": ()}
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(dataclasses.replace(template_of(state), **bare))
    assert_same(restored, dataclasses.replace(state, **bare))
    assert restored.gaussians_opt == restored.network_opt == restored.poses_opt == ()


def test_last_or_chosen_step(tmp_path, optimizers):
    states = [make_state(optimizers, step=step) for step in (2, 4, 6)]
    write(tmp_path, *states)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 4, 6]
        assert_same(checkpoints.restore(template_of(states[0])), states[2])
        assert_same(checkpoints.restore(template_of(states[0]), 4), states[1])
        with pytest.raises(UserError, match="no checkpoint of step 5 .*: there are 2, 4, 6"):
            checkpoints.restore(template_of(states[0]), 5)


def test_only_the_last_are_kept(tmp_path, optimizers):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(make_state(optimizers, step=step))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 4]


def test_saved_step_is_not_written_again(tmp_path, optimizers):
    folder = write(tmp_path, make_state(optimizers, step=3))
    before = contents(folder)
    write(tmp_path, dataclasses.replace(make_state(optimizers, step=1), step=jnp.int32(3)))
    assert contents(folder) == before


def test_none_there(tmp_path, optimizers):
    refused(tmp_path, make_state(optimizers), "no checkpoint in .*: train with this --workdir first")


def truncate_data(folder):
    for path in (folder / "default").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble_data(folder):
    for path in (folder / "default").rglob("d/*"):
        path.write_bytes(bytes(byte ^ 0xA5 for byte in path.read_bytes()))


def remove_data(folder):
    for path in list((folder / "default").rglob("d")):
        shutil.rmtree(path)


def remove_metadata(folder):
    (folder / "default" / "_METADATA").unlink()


def garble_metadata(folder):
    (folder / "default" / "_METADATA").write_text("{")


def remove_arrays(folder):
    shutil.rmtree(folder / "default")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [truncate_data, garble_data, remove_data, remove_metadata, garble_metadata, remove_arrays, empty]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_is_refused_or_passed_over_and_left_alone(tmp_path, optimizers, damage):
    states = [make_state(optimizers, step=step) for step in (2, 4)]
    folder = write(tmp_path, *states)
    damage(folder / "4")
    before = contents(folder)
    with Checkpoints(tmp_path) as checkpoints:
        if checkpoints.steps() == [2]:
            assert_same(checkpoints.restore(template_of(states[0])), states[0])
        else:
            with pytest.raises(
                UserError, match="/4 cannot be read .*remove that folder to go on from step 2"
            ) as caught:
                checkpoints.restore(template_of(states[0]))
            assert "\n" not in str(caught.value)
            assert_same(checkpoints.restore(template_of(states[0]), 2), states[0])
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [truncate_data, remove_arrays], ids=lambda damage: damage.__name__)
def test_damaged_and_alone(tmp_path, optimizers, damage):
    state = make_state(optimizers, step=4)
    damage(write(tmp_path, state) / "4")
    refused(tmp_path, state, "cannot be read .*remove that folder to start again")


def test_save_that_was_cut_off_is_passed_over(tmp_path, optimizers):
    """Orbax writes into a folder of another name until all is there."""
    states = [make_state(optimizers, step=step) for step in (2, 4)]
    folder = write(tmp_path, *states)
    truncate_data(folder / "4")
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2]
        assert_same(checkpoints.restore(template_of(states[0])), states[0])


def test_save_after_one_that_was_cut_off(tmp_path, optimizers):
    states = [make_state(optimizers, step=step) for step in (2, 4)]
    folder = write(tmp_path, *states)
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    write(tmp_path, states[1])
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(template_of(states[0])), states[1])


def test_other_network_is_refused(tmp_path, optimizers):
    write(tmp_path, make_state(optimizers, step=4, network=NETWORK))
    wider = dataclasses.replace(NETWORK, kernel_sizes=(3, 5), strides=(1, 1))
    refused(tmp_path, make_state(optimizers, network=wider), "cannot be read .*damaged or of another version")


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(pathlib.Path(tmp_path / "file" / "run"))
