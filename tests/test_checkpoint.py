"""Checkpoints: states are restored to the last bit, and damaged checkpoints are refused in one line."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bags_jax.blur_model.proposal_network import BlurProposalNetwork
from bags_jax.checkpoint import Checkpoints
from bags_jax.checksums import check_arrays, hash_array, read_checksums
from bags_jax.errors import UserError
from bags_jax.scene.initialize import init_gaussians, init_state, with_optimizers
from bags_jax.scene.optimizer import make_optimizers
from bags_jax.settings import Optim

MODEL = BlurProposalNetwork(num_views=2, kernel_sizes=(3,), width=4, embedding_width=4, conv_width=4, feature_width=4)


def make_state(*, capacity=16, step=0, model=None, sh_degree=1):
    points = np.random.default_rng(step).normal(size=(10, 3)).astype(np.float32)
    colors = np.abs(points) % 1
    gaussians = init_gaussians(points, colors, capacity=capacity, sh_degree=sh_degree, opacity=0.1)
    state = init_state(gaussians, jnp.arange(capacity) < 10, num_views=2, model=model)
    state = with_optimizers(state, make_optimizers(Optim(), model, restart=0, num_steps=10))
    return dataclasses.replace(state, step=jnp.int32(step))


def template_of(state):
    return jax.eval_shape(lambda: state)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class FullDisk:
    """Orbax on a full disk."""

    def __init__(self, checkpointer, fails_in: str):
        self._checkpointer, self._fails_in, self.is_closed = checkpointer, fails_in, False

    def __getattr__(self, name):
        def fail(*_, **__):
            self._checkpointer.wait_until_finished()
            raise ValueError("OUT_OF_RANGE: No space left on device\nSource locations: ...")

        return fail if name == self._fails_in else getattr(self._checkpointer, name)

    def close(self):
        self.is_closed = True
        self._checkpointer.close()


def on_full_disk(folder, fails_in):
    checkpoints = Checkpoints(folder)
    checkpoints._orbax = disk = FullDisk(checkpoints._checkpointer(), fails_in)
    return checkpoints, disk


@pytest.mark.parametrize("fails_in", ["save", "wait_until_finished"])
def test_full_disk_is_reported_in_one_line(tmp_path, fails_in):
    checkpoints, disk = on_full_disk(tmp_path, fails_in)
    says = r"cannot be written to .*No space left on device\): free space"
    with pytest.raises(UserError, match=says) as caught, checkpoints:
        checkpoints.save(make_state())
    assert "\n" not in str(caught.value) and disk.is_closed
    assert not list((tmp_path / "checkpoints").iterdir())  # what was begun is removed
    write(tmp_path, make_state(step=3))  # there is space again


def test_full_disk_is_reported_at_the_next_save(tmp_path):
    checkpoints, _ = on_full_disk(tmp_path, "wait_until_finished")
    with checkpoints:
        checkpoints.save(make_state(step=1))
        with pytest.raises(UserError, match="No space left on device"):
            checkpoints.save(make_state(step=2))


def test_full_disk_does_not_hide_an_earlier_error(tmp_path):
    checkpoints, disk = on_full_disk(tmp_path, "wait_until_finished")
    with pytest.raises(UserError, match="the loss is not finite"), checkpoints:
        checkpoints.save(make_state())
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


@pytest.mark.parametrize("model", [None, MODEL], ids=["plain", "blur"])
@pytest.mark.parametrize("sh_degree", [0, 1])
def test_state_is_restored(tmp_path, model, sh_degree):
    state = make_state(step=3, model=model, sh_degree=sh_degree)
    write(tmp_path, state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(template_of(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(restored))
    assert_same(restored, state)


def test_another_number_of_gaussians_is_restored(tmp_path):
    """Empty arrays, too, get that number of rows, although they are not saved."""
    state = make_state(capacity=24, step=3, sh_degree=0)
    write(tmp_path, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(template_of(make_state(capacity=16, sh_degree=0))), state)


def test_fields_that_the_template_leaves_out_are_not_restored(tmp_path):
    """A run is evaluated without its optimizers."""
    state = make_state(step=3, model=MODEL)
    write(tmp_path, state)
    bare = {"gaussians_opt": (), "network_opt": (), "poses_opt": (), "exposures_opt": ()}
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(dataclasses.replace(template_of(state), **bare))
    assert_same(restored, dataclasses.replace(state, **bare))
    assert restored.gaussians_opt == restored.network_opt == restored.poses_opt == ()


def test_last_or_chosen_step(tmp_path):
    states = [make_state(step=step) for step in (2, 4, 6)]
    write(tmp_path, *states)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 4, 6]
        assert_same(checkpoints.restore(template_of(states[0])), states[2])
        assert_same(checkpoints.restore(template_of(states[0]), 4), states[1])
        with pytest.raises(UserError, match="no checkpoint of step 5 .*: there are 2, 4, 6"):
            checkpoints.restore(template_of(states[0]), 5)


def test_only_the_last_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(make_state(step=step))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 4]


def test_saved_step_is_not_written_again(tmp_path):
    folder = write(tmp_path, make_state(step=3))
    before = contents(folder)
    write(tmp_path, dataclasses.replace(make_state(step=1), step=jnp.int32(3)))
    assert contents(folder) == before


def test_no_checkpoint(tmp_path):
    refused(tmp_path, make_state(), "no checkpoint in .*: train with this --workdir first")


def truncate_data(folder):
    for path in (folder / "default").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble_data(folder):
    for path in (folder / "default").rglob("d/*"):
        path.write_bytes(bytes(byte ^ 0xA5 for byte in path.read_bytes()))


def remove_data(folder):
    for path in list((folder / "default").rglob("d")):
        shutil.rmtree(path)


def garble_metadata(folder):
    (folder / "default" / "_METADATA").write_text("{")


def remove_arrays(folder):
    shutil.rmtree(folder / "default")


def remove_checksums(folder):
    (folder / "sha256.json").unlink()


def lose_a_checksum(folder):
    path = folder / "sha256.json"
    rows = json.loads(path.read_text())
    del rows["alive"]
    path.write_text(json.dumps(rows))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [
    truncate_data,
    garble_data,
    remove_data,
    garble_metadata,
    remove_arrays,
    remove_checksums,
    lose_a_checksum,
    empty,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_checkpoint_is_named_and_passed_over(tmp_path, damage, capfd):
    """Readers change nothing. Training, which calls `resume`, sets the damaged folder aside and may write that step again."""
    states = [make_state(step=step) for step in (2, 4)]
    folder = write(tmp_path, *states)
    damage(folder / "4")
    before = contents(folder)
    with Checkpoints(tmp_path, create=False) as checkpoints:
        with pytest.raises(UserError, match="/4 cannot be read .*move that folder away to go on from step 2") as caught:
            checkpoints.restore(template_of(states[0]), 4)
        assert "\n" not in str(caught.value)
        assert_same(checkpoints.restore(template_of(states[0])), states[0])
    assert contents(folder) == before
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(said) == 1 and "checkpoints/4 is damaged (" in said[0] and "step 2 is read instead" in said[0]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.resume() == 2
        assert_same(checkpoints.restore(template_of(states[0])), states[0])
        checkpoints.save(states[1])
    assert "checkpoint 4 is damaged" in (said := capfd.readouterr().err) and "renamed to 4.damaged" in said
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "4.damaged"]
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert_same(checkpoints.restore(template_of(states[0])), states[1])


@pytest.mark.parametrize("damage", [truncate_data, remove_arrays], ids=lambda damage: damage.__name__)
def test_damaged_only_checkpoint(tmp_path, damage):
    state = make_state(step=4)
    damage(write(tmp_path, state) / "4")
    refused(tmp_path, state, "cannot be read .*move that folder away to start again")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="to start again"):
        checkpoints.resume()  # training must not begin at 0 without a word


def test_no_flipped_bit_goes_unseen(tmp_path):
    """A bit of any file of a checkpoint: the state is the same, or the checkpoint is refused."""
    state = make_state(step=4)
    folder = write(tmp_path, state)
    before = contents(folder)
    rng = np.random.default_rng(0)
    sizes = {path: len(data) for path, data in before.items() if data}
    flips = [(path, int(rng.integers(8 * size))) for path, size in sizes.items() for _ in range(2)]
    refusals = 0
    for path, bit in flips:
        data = bytearray(before[path])
        data[bit // 8] ^= 1 << bit % 8
        (folder / path).write_bytes(data)
        with Checkpoints(tmp_path, create=False) as checkpoints:
            try:
                assert_same(checkpoints.restore(template_of(state)), state)
            except UserError as error:
                refusals += 1
                assert "\n" not in str(error) and "/4 cannot be read" in str(error)
        (folder / path).write_bytes(before[path])
    assert refusals  # else the bits were none that matter; how many do depends on the names that Orbax draws


def test_checksum_names_the_array(tmp_path):
    state = make_state(step=4)
    folder = write(tmp_path, state)
    rows = read_checksums(folder / "4")
    arrays = {name: np.zeros(row["shape"], row["dtype"]) for name, row in rows.items()}
    with pytest.raises(ValueError, match="the SHA-256 of alive is not the one in sha256.json"):
        check_arrays(
            {**arrays}, {**rows, **{name: {"sha256": hash_array(x)} for name, x in arrays.items() if name != "alive"}}
        )
    assert hash_array(np.zeros(2, np.float32)) != hash_array(np.zeros(1, np.float64))
    assert hash_array(np.zeros((2, 1), np.int8)) != hash_array(np.zeros(2, np.int8))


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    states = [make_state(step=step) for step in (2, 4)]
    folder = write(tmp_path, *states)
    (folder / "2").rename(folder / ".2.deleted")  # killed while it deleted 2 and wrote 6
    shutil.rmtree(folder / ".2.deleted" / "default")
    shutil.copytree(folder / "4", folder / ".6.unfinished")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4] and checkpoints.resume() == 4
    assert [path.name for path in folder.iterdir()] == ["4"]


def test_save_after_one_that_was_cut_off(tmp_path):
    """A checkpoint gets its name in one step, when all its files are complete."""
    states = [make_state(step=step) for step in (2, 4)]
    folder = write(tmp_path, *states)
    truncate_data(folder / "4")
    (folder / "4").rename(folder / ".4.unfinished")
    with Checkpoints(tmp_path, create=False) as checkpoints:
        assert checkpoints.steps() == [2]
        assert_same(checkpoints.restore(template_of(states[0])), states[0])
    write(tmp_path, states[1])
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(template_of(states[0])), states[1])


def test_other_network_is_refused(tmp_path):
    write(tmp_path, make_state(step=4, model=MODEL))
    wider = dataclasses.replace(MODEL, kernel_sizes=(3, 5))
    refused(tmp_path, make_state(model=wider), "cannot be read .*damaged or of another version")


def test_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(pathlib.Path(tmp_path / "file" / "run"))
