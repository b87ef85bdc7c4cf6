"""Global descriptors of photographs from their SIFT features: which photographs show the same things.

VLAD (Jegou et al. 2010) with the normalisations of Arandjelovic and Zisserman (2013). The vocabulary is learned from the
photographs themselves, so nothing is downloaded.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

NUM_WORDS = 64
MAX_FEATURES = 400  # of a photograph: its largest ones, which survive blur
_TRAINING_FEATURES = 20_000
_ROUNDS = 8  # of k-means


def describe_photographs(features: Sequence[UInt8[np.ndarray, "_n 128"]]) -> Float[np.ndarray, "V D"]:
    """Returns a descriptor of norm 1 for each photograph; 0 for a photograph without features.

    Args:
      features: SIFT descriptors of each photograph.
    """
    samples = np.concatenate([np.zeros((0, 128), np.float32), *(_to_root(f) for f in features)])
    if len(samples) < NUM_WORDS:
        return np.zeros((len(features), NUM_WORDS * 128), np.float32)
    words = _learn_words(samples)
    return np.stack([_describe(_to_root(f), words) for f in features])


def _to_root(features: np.ndarray) -> np.ndarray:
    """Descriptors as vectors of norm 1. COLMAP stores square roots of their shares (RootSIFT)."""
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)


def _learn_words(samples: np.ndarray) -> np.ndarray:
    """Returns the centres [NUM_WORDS, 128] of k-means from a fixed random start."""
    key = np.random.default_rng(0)
    if len(samples) > _TRAINING_FEATURES:
        samples = samples[key.choice(len(samples), _TRAINING_FEATURES, replace=False)]
    words = samples[key.choice(len(samples), NUM_WORDS, replace=False)]
    for _ in range(_ROUNDS):
        owners = _find_words(samples, words)
        counts = np.bincount(owners, minlength=NUM_WORDS)
        sums = np.zeros_like(words)
        np.add.at(sums, owners, samples)
        words = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], words)
    return words


def _find_words(features: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest word of each feature."""
    return np.argmin(np.sum(words**2, axis=1) - 2 * features @ words.T, axis=1)


def _describe(features: np.ndarray, words: np.ndarray) -> np.ndarray:
    sums = np.zeros_like(words)
    owners = _find_words(features, words)
    np.add.at(sums, owners, features - words[owners])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)  # each word counts the same
    flat = sums.ravel()
    return (flat / max(float(np.linalg.norm(flat)), 1e-6)).astype(np.float32)
