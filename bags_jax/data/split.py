"""The split into training views and views held out for evaluation."""

import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from bags_jax.errors import UserError

DEFAULT_HOLDOUT_EVERY = 8  # of Deblur-NeRF's captures
_MIN_TRAIN_VIEWS = 2


def find_holdout_every(root: pathlib.Path, holdout: int = 0) -> int:
    """Returns n, where every n-th view is held out: `holdout` if positive, else n of an empty file hold=n, else 8.

    Raises:
      UserError: holdout < 0, a file hold=... without a positive number, or several such files.
    """
    if holdout < 0:
        raise UserError(f"holdout is {holdout}: expected 0 (the scene's own rule) or a number of views >= 2")
    if holdout:
        return holdout
    marks = sorted(path.name for path in root.glob("hold=*"))
    if not marks:
        return DEFAULT_HOLDOUT_EVERY
    match = re.fullmatch(r"hold=0*([1-9]\d*)", marks[0])
    if len(marks) > 1 or not match or len(match.group(1)) > 9:
        raise UserError(f"{root} has {', '.join(marks)}: expected one file named hold=N with N >= 2; keep or fix one")
    return int(match.group(1))


def split_every(num_views: int, *, every: int) -> tuple[Int[np.ndarray, "_A"], Int[np.ndarray, "_B"]]:
    """Returns (train_ids, test_ids): view i, by file name, is held out if i % every == 0 (Deblur-NeRF's rule).

    Raises:
      UserError: fewer than 2 training views are left.
    """
    ids, every = (
        np.arange(num_views, dtype=np.int32),
        min(every, max(num_views, 1)),
    )  # NumPy takes no number of 400 digits
    train_ids, test_ids = ids[ids % every != 0], ids[ids % every == 0]
    _check_enough(len(train_ids), num_views, f"with one of every {every} held out (holdout, or the file hold=N)")
    return train_ids, test_ids


def split_by_names(
    names: Sequence[str], test_names: frozenset[str]
) -> tuple[Int[np.ndarray, "_A"], Int[np.ndarray, "_B"]]:
    """Returns (train_ids, test_ids) of a scene whose files name the held-out views.

    Raises:
      UserError: fewer than 2 training views are left.
    """
    held_out = np.array([name in test_names for name in names], bool)
    _check_enough(int((~held_out).sum()), len(names), "by the scene's own list of training views")
    return np.flatnonzero(~held_out).astype(np.int32), np.flatnonzero(held_out).astype(np.int32)


def _check_enough(num_train: int, num_views: int, how: str) -> None:
    if num_train < _MIN_TRAIN_VIEWS:
        raise UserError(
            f"{num_train} of {num_views} views are left for training {how}: expected at least {_MIN_TRAIN_VIEWS}; "
            f"add posed photographs or hold out fewer"
        )
