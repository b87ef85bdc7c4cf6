"""Why photographs found no pose."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bags_jax.data.pairing import name_some

MIN_FEATURES = 60  # COLMAP needs 30 matches with the model; about half of all features match at best
MIN_SHARE = 0.15  # of the median number of features
MIN_MATCHES = 30  # COLMAP's smallest number of matches for a pose
FLAT_KINDS = ("PLANAR_OR_PANORAMIC", "PANORAMIC", "PLANAR")  # one homography explains all matches of the pair
FLAT_SHARE = 0.95  # of the pairs, from which on the camera has not moved, or the scene is a plane


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two photographs with verified matches."""

    first: str
    second: str
    num_matches: int
    kind: str  # COLMAP's name of the two-view geometry


def explain_losses(
    lost_names: Sequence[str],
    num_features: dict[str, int],
    pairs: Sequence[Pair],
    other_models: Sequence[Sequence[str]],
) -> dict[str, tuple[str, ...]]:
    """Returns the lost photographs by reason.

    Args:
      num_features: of each photograph that could be read.
      pairs: all pairs with verified matches.
      other_models: names in each model that could not be connected with the one that is kept.
    """
    usual = float(np.median([count for name, count in num_features.items() if name not in lost_names] or [0]))
    most: dict[str, int] = {}
    for pair in pairs:
        for name in (pair.first, pair.second):
            most[name] = max(most.get(name, 0), pair.num_matches)
    reasons: dict[str, list[str]] = {}
    for name in lost_names:
        reasons.setdefault(_explain(name, num_features, usual, most, other_models), []).append(name)
    return {reason: tuple(names) for reason, names in reasons.items()}


def _explain(
    name: str, num_features: dict[str, int], usual: float, most: dict[str, int], other_models: Sequence[Sequence[str]]
) -> str:
    if name not in num_features:
        return "cannot be read as pictures"
    if num_features[name] < max(MIN_FEATURES, MIN_SHARE * usual):
        return f"too blurred or too plain (few features; the others have about {usual:.0f})"
    group = next((model for model in other_models if name in model), ())
    if group:
        return "connected with each other only, not with the rest: photographs between the two are missing"
    if most.get(name, 0) < MIN_MATCHES:
        return f"too few matches with any other (under {MIN_MATCHES}): blurred, or nothing else shows the same"
    return "their matches fit no position: things that move or repeat, or no second view of the same place"


def describe_losses(lost: dict[str, tuple[str, ...]]) -> list[str]:
    """Returns one line for each reason."""
    return [f"lost {len(names)}, {reason}: {name_some(names)}" for reason, names in lost.items()]


def is_without_parallax(pairs: Sequence[Pair]) -> bool:
    """True if one homography explains nearly every pair: the camera only turned, stood still, or saw one plane."""
    flat = sum(pair.kind in FLAT_KINDS for pair in pairs)
    return bool(pairs) and flat >= FLAT_SHARE * len(pairs)
