"""Nearest neighbours as a tagger: features (N,D) and the training tiles' targets in, scores out.

It learns nothing, so it tells what the features are worth before any probe.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 20  # as DINO sets both, arXiv:2104.14294
TEMPERATURE = 0.07
BLOCK = 256  # queries at a time

Features = npt.NDArray[np.floating[Any]]


def scores(
    queries: Features, features: Features, targets: npt.NDArray[np.integer[Any]], *, k: int, temperature: float
) -> npt.NDArray[np.float32]:
    """The share of its k nearest neighbours that have a label, each weighted exp(cosine / temperature): (M,K).

    queries (M,D); features (N,D) with targets (N,K) of 0 and 1. With fewer than k training tiles all of them
    vote; of equally near tiles the first. Scores lie in [0, 1]. Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    known, labels, k = _unit(features), targets.astype(np.float32), min(k, len(features))
    result = np.empty((len(queries), labels.shape[1]), np.float32)
    for start in range(0, len(queries), BLOCK):
        for i, row in enumerate(_unit(queries[start : start + BLOCK]) @ known.T, start):
            near = np.flatnonzero(row >= np.partition(row, -k)[-k])  # the k nearest, and ties with the last of them
            near = near[np.argsort(-row[near], kind="stable")[:k]]
            weight = np.exp((row[near] - row[near[0]]) / temperature)
            result[i] = weight @ labels[near] / weight.sum()
    return result


def _unit(x: Features) -> npt.NDArray[np.float32]:
    """Rows at unit length."""
    rows = x.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows
