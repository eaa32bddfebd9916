"""Is the candidate better than the champion? A paired bootstrap over the tiles of the same test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

CHUNK = 64  # resamples weighed at once: memory stays at CHUNK × N

Scores = npt.NDArray[np.float32]
Targets = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Scores of one model on the test split: (N,K), with the names of tiles and labels."""

    scores: Scores
    targets: Targets
    labels: tuple[str, ...]
    tiles: tuple[str, ...]

    def same_as(self, other: Split) -> bool:
        """Whether both hold the same tiles, labels and truth, in the same order."""
        named = self.labels == other.labels and self.tiles == other.tiles
        return named and np.array_equal(self.targets, other.targets)


@dataclass(frozen=True)
class Contrast:
    """Difference of test mAP, candidate minus champion, with its 95% interval."""

    delta_mAP: float  # noqa: N815 - the field's spelling
    low: float
    high: float

    @property
    def better(self) -> bool:
        return self.low > 0


def read_split(path: Path) -> Split:
    """Read the test part of a scores.npz."""
    with np.load(path, allow_pickle=False) as file:
        return Split(
            file["test_scores"],
            file["test_targets"],
            tuple(map(str, file["labels"])),
            tuple(map(str, file["test_tiles"])),
        )


def contrast(candidate: Split, champion: Split, *, resamples: int = 1000, seed: int = 0) -> Contrast:
    """Resample the tiles, the same ones for both, and take the percentile interval of the difference in mAP.

    A label without positives in a resample is left out of both means. Raises ValueError where the splits differ.
    """
    if not candidate.same_as(champion):
        raise ValueError("candidate and champion were tested on different tiles or labels")
    tiles = len(candidate.tiles)
    rng = np.random.default_rng(seed)
    whole = np.ones((1, tiles))
    deltas = []
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        weights = rng.multinomial(tiles, np.full(tiles, 1 / tiles), size=count).astype(np.float64)
        deltas.append(_mean_ap(candidate, weights) - _mean_ap(champion, weights))
    low, high = np.nanpercentile(np.concatenate(deltas), [2.5, 97.5])
    delta = _mean_ap(candidate, whole) - _mean_ap(champion, whole)
    return Contrast(float(delta[0]), float(low), float(high))


def _mean_ap(split: Split, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(R,N) weights of tiles → (R) mAP; R all ones is the plain mAP."""
    total = np.zeros(len(weights))
    defined = np.zeros(len(weights))
    for scores, targets in zip(split.scores.T, split.targets.T, strict=True):
        ap = _weighted_ap(scores, targets, weights)
        total += np.nan_to_num(ap)
        defined += ~np.isnan(ap)
    return np.where(defined > 0, total / np.maximum(defined, 1), np.nan)


def _weighted_ap(
    scores: npt.NDArray[np.float32], targets: Targets, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """AP as in scikit-learn (tied scores share one threshold) of each row of weights; nan without positives."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    weights = weights[:, order]
    seen = np.cumsum(weights, axis=1)[:, ends]
    hits = np.cumsum(weights * targets[order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    area = np.sum(gained * hits / np.maximum(seen, 1e-300), axis=1)
    return np.where(hits[:, -1] > 0, area / np.maximum(hits[:, -1], 1e-300), np.nan)
