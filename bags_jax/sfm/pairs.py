"""Which photographs are matched with each other: all of a few; of many, or of a video, a number that grows linearly."""

import numpy as np
from jaxtyping import Float, Int

MAX_EXHAUSTIVE = 150  # photographs up to which every pair is matched
NUM_ALIKE = 20  # photographs of the most similar content that each of many photographs is matched with
NUM_LOOPS = 4  # the same for a frame of a video: places that the camera comes back to
NUM_NEAR = 8  # photographs taken nearest, by their GPS
_REACH = 6  # frames of a video, or photographs in the order of their names, that follow each other
_REACH_PHOTOS = 4
_BRIDGES = 24  # pairs that are tried to connect a separate group of photographs


def pair_all(num: int) -> Int[np.ndarray, "P 2"]:
    """Returns every pair of `num` photographs: indices, the smaller first."""
    return np.stack(np.triu_indices(num, 1), axis=1)


def pair_frames(num: int, descriptors: Float[np.ndarray, "V D"]) -> Int[np.ndarray, "P 2"]:
    """Pairs the frames of a video: with the frames that follow, some much later ones, and the most similar distant ones.

    Args:
      num: frames, in the order of time.
      descriptors: global descriptor of each frame, of norm 1.
    """
    steps = [*range(1, _REACH + 1), *(2**k for k in range(3, 7))]
    return _merge([_pair_by_step(num, steps), _pair_alike(descriptors, NUM_LOOPS, min_step=_REACH + 1)])


def pair_many(
    descriptors: Float[np.ndarray, "V D"], positions: Float[np.ndarray, "V 3"] | None = None
) -> Int[np.ndarray, "P 2"]:
    """Pairs many photographs: with the most similar ones, with those before and after, with the nearest by GPS.

    Groups without a pair between them are connected by their most similar photographs.

    Args:
      descriptors: global descriptor of each photograph, of norm 1.
      positions: where they were taken, in metres; None: unknown.
    """
    steps = _pair_by_step(len(descriptors), range(1, _REACH_PHOTOS + 1))
    parts = [_pair_alike(descriptors, NUM_ALIKE), steps]
    if positions is not None:
        parts.append(_pair_nearest(-np.linalg.norm(positions[:, None] - positions[None], axis=-1), NUM_NEAR))
    pairs = _merge(parts)
    return _merge([pairs, pair_groups(pairs, descriptors)])


def pair_groups(connected: Int[np.ndarray, "P 2"], descriptors: Float[np.ndarray, "V D"]) -> Int[np.ndarray, "Q 2"]:
    """Returns pairs that may connect each separate group of photographs with the rest: the most similar across.

    Args:
      connected: pairs that are connected already.
      descriptors: global descriptor of each photograph, of norm 1.
    """
    groups = find_groups(len(descriptors), connected)
    alike = descriptors @ descriptors.T
    bridges = [np.zeros((0, 2), int)]
    for members in groups[1:]:
        others = np.setdiff1d(np.arange(len(descriptors)), members)
        across = alike[np.ix_(members, others)]
        best = np.argsort(-across, axis=None, kind="stable")[:_BRIDGES]
        rows, columns = np.unravel_index(best, across.shape)
        bridges.append(np.stack([members[rows], others[columns]], axis=1))
    return _merge(bridges)


def find_groups(num: int, pairs: Int[np.ndarray, "P 2"]) -> list[Int[np.ndarray, "_n"]]:
    """Returns the connected groups of photographs, the largest first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(num, num))
    _, labels = connected_components(links, directed=False)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted(groups, key=len, reverse=True)


def order_by_block(pairs: Int[np.ndarray, "P 2"], size: int) -> Int[np.ndarray, "P 2"]:
    """Sorts pairs so that those of the same `size` photographs follow each other: their features are read once."""
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 1] // size, pairs[:, 0] // size))]


def convert_to_metres(degrees: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
    """Converts GPS positions (latitude and longitude in degrees, altitude in metres) to metres from their mean."""
    latitude, longitude, altitude = (degrees - degrees.mean(0)).T
    per_degree = 111_320.0  # metres of a degree of latitude
    shrink = np.cos(np.radians(degrees[:, 0].mean()))
    return np.stack([per_degree * latitude, per_degree * shrink * longitude, altitude], axis=1)


def _pair_by_step(num: int, steps) -> Int[np.ndarray, "P 2"]:
    first = np.concatenate([np.arange(max(num - step, 0)) for step in steps])
    step = np.concatenate([np.full(max(num - step, 0), step) for step in steps])
    return np.stack([first, first + step], axis=1)


def _pair_alike(descriptors: np.ndarray, num: int, *, min_step: int = 1) -> Int[np.ndarray, "P 2"]:
    alike = descriptors @ descriptors.T
    index = np.arange(len(alike))
    alike[np.abs(index[:, None] - index[None]) < min_step] = -np.inf
    return _pair_nearest(alike, num)


def _pair_nearest(scores: np.ndarray, num: int) -> Int[np.ndarray, "P 2"]:
    """Pairs each photograph with the `num` others of the highest finite score."""
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :num]
    rows = np.repeat(np.arange(len(scores)), best.shape[1])
    is_real = np.isfinite(scores[rows, best.ravel()])
    return np.stack([rows, best.ravel()], axis=1)[is_real]


def _merge(parts: list[np.ndarray]) -> Int[np.ndarray, "P 2"]:
    """Returns each pair once, the smaller index first."""
    return np.unique(np.sort(np.concatenate(parts), axis=1), axis=0)
