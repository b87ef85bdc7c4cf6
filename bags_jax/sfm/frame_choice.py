"""Which frames of a video become photographs: sharp ones, spread over the camera's path."""

import numpy as np
from jaxtyping import Float, Int

FEWEST, MOST = 60, 150  # frames that are kept, unless the video has too few
STRETCH = 0.05  # path that a kept frame stands for, share of the picture's longer side
# Share of time in the distance between frames; the rest is path. By path alone the frames would crowd where the camera
# moves fast, which is where they are blurred.
_TIME_SHARE = 0.5


def count_frames(path: Float[np.ndarray, "F"]) -> int:
    """Returns the number of frames to keep of a video.

    Args:
      path: how far the picture has moved up to each frame, share of its longer side.
    """
    return int(min(np.clip(np.ceil(path[-1] / STRETCH), FEWEST, MOST), max(len(path) // 2, 1)))


def choose_frames(sharpness: Float[np.ndarray, "F"], path: Float[np.ndarray, "F"], num: int) -> Int[np.ndarray, "_n"]:
    """Returns the indices of at most `num` frames, sorted.

    Takes the sharpest frame, then the sharpest of those that are far enough from all taken ones, and so on. The
    smallest distance is the one that leaves about `num`. So a blurred frame is taken only where no sharp one is near.

    Args:
      sharpness: compared between neighbours, which show nearly the same.
      path: how far the picture has moved up to each frame, share of its longer side; it never shrinks.
      num: frames.
    """
    times = np.linspace(0.0, 1.0, len(path))
    places = _TIME_SHARE * times + (1 - _TIME_SHARE) * path / max(float(path[-1]), 1e-9)
    order = np.argsort(-sharpness, kind="stable")
    near, far = 0.0, 1.0  # smallest distances that leave too many, and few enough
    chosen = _choose(places, order, far)
    for _ in range(20):
        middle = 0.5 * (near + far)
        found = _choose(places, order, middle)
        if len(found) > num:
            near = middle
        else:
            far, chosen = middle, found
    return chosen


def _choose(places: np.ndarray, order: np.ndarray, distance: float) -> Int[np.ndarray, "_n"]:
    is_free = np.ones(len(places), bool)
    chosen = []
    for index in order:
        if is_free[index]:
            chosen.append(index)
            is_free &= np.abs(places - places[index]) > distance
    return np.sort(np.array(chosen, int))
