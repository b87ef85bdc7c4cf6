"""The logs of training: what a resumed run repeats is removed, and a full disk is one line."""

import errno
import json
import os

import numpy as np
import pytest

from bags_jax.errors import UserError
from bags_jax.writers import Writers


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    """(step, names) of all events, by an independent reading of the record format."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found.append((event.step, [value.tag for value in event.summary.value], event.session_log.status))
            data = data[16 + size :]
    return found


def test_both_logs(tmp_path):
    with Writers(tmp_path) as writers:
        writers.write(2, {"loss": 0.5, "psnr": 20.0})
        writers.draw(2, {"view": np.zeros((4, 6, 3), np.uint8)})
    assert rows(tmp_path) == [{"step": 2, "loss": 0.5, "psnr": 20.0}]
    assert events(tmp_path) == [(0, [], 0), (1, [], 1), (2, ["loss"], 0), (2, ["psnr"], 0), (2, ["view"], 0)]


def test_repeated_steps_and_half_lines_are_removed(tmp_path):
    with Writers(tmp_path) as writers:
        for step in (1, 2, 3):
            writers.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('no json\n{"step": 1, "lo')
    with Writers(tmp_path, 2) as writers:
        writers.write(3, {"loss": 0.0})
    assert rows(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 0.0}]


def test_nothing_is_written_before_there_is_something(tmp_path):
    with Writers(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["write", "draw", "exit"])
def test_full_disk_is_reported_in_one_line(tmp_path, where):
    writers = Writers(tmp_path)
    writers.write(1, {"loss": 1.0})
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __getattr__(self, name):
            def fail(*_):
                raise full

            return fail

    writers._board.close()
    writers._board = Full()
    says = r"cannot write .*No space left on device\): free space on the disk"
    with pytest.raises(UserError, match=says) as caught, writers:
        if where == "write":
            writers.write(2, {"loss": 1.0})
        elif where == "draw":
            writers.draw(2, {"view": np.zeros((4, 6, 3), np.uint8)})
    assert "\n" not in str(caught.value)


def test_a_full_disk_at_the_end_does_not_hide_an_earlier_error(tmp_path):
    with pytest.raises(KeyError), Writers(tmp_path) as writers:
        writers.write(1, {"loss": 1.0})
        os.close(writers._lines.fileno())
        raise KeyError
