"""How far a mAP, or a difference of two, would move with other test tiles and other seeds.

A resample is a count for every tile. Scores are sorted once; a resample then costs one gather and two
cumulative sums a label, and equals average precision over the rows repeated that often, ties included.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satclr.evaluation.metrics.inputs import Bools, Floats, checked
from satclr.evaluation.metrics.precision import nan_mean

Counts = NDArray[np.int32]
_BLOCK = 64  # resamples at a time: the counts of 10,000 tiles then stay in a cache


def bootstrap(scores: ArrayLike, targets: ArrayLike, *, resamples: int, seed: int) -> Floats:
    """Macro mAP on each of `resamples` draws of N tiles with replacement: (resamples,).

    scores: (N,K) finite; targets: (N,K) of 0 and 1. A label that loses all its positives in a resample is
    left out of that resample's mean. The same seed draws the same tiles.
    Raises ValueError as `average_precision` does, and on resamples < 1.
    """
    return paired_bootstrap([scores], targets, resamples=resamples, seed=seed)[:, 0]


def paired_bootstrap(scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int) -> Floats:
    """Macro mAP of every arm on the same resamples: (resamples, arms); a contrast is a difference of columns.

    scores_by_arm: A arrays (N,K); the rest as `bootstrap`.
    """
    return nan_mean(paired_bootstrap_average_precision(scores_by_arm, targets, resamples=resamples, seed=seed))


def paired_bootstrap_average_precision(
    scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int
) -> Floats:
    """AP of every arm and label on the same resamples: (resamples, arms, K), nan where positives are lost."""
    if not scores_by_arm:
        raise ValueError("scores_by_arm is empty; give one array (tiles, labels) for each arm")
    pairs = [checked(scores, targets) for scores in scores_by_arm]
    counts = draw_counts(len(pairs[0][0]), resamples=resamples, seed=seed)
    return np.stack([resampled_average_precision(s, t, counts) for s, t in pairs], axis=1)


def paired_bootstrap_over_seeds(
    scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int
) -> Floats:
    """AP of every arm and label, a mean over seeds, when both tiles and seeds are redrawn: (resamples, arms, K).

    scores_by_arm: A arrays (S,N,K), each with its own number of seeds S; the rest as `bootstrap`. A resample
    draws tiles once, for all arms and seeds, and apart from them S of each arm's seeds with replacement; its
    value is the mean AP of the drawn seeds, nan where a label loses its positives; `nan_mean` makes it mAP.
    Drawing from S seeds understates their variance by (S-1)/S, which matters for three; crossing the draws
    errs on the other side.
    Source: the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2).
    """
    stacks = [np.asarray(scores, dtype=np.float64) for scores in scores_by_arm]
    for arm, stack in enumerate(stacks):
        if stack.ndim != 3 or not len(stack):
            raise ValueError(
                f"scores_by_arm[{arm}] has shape {stack.shape}; it must be (seeds, tiles, labels), not empty"
            )
    runs = [scores for stack in stacks for scores in stack]
    values = paired_bootstrap_average_precision(runs, targets, resamples=resamples, seed=seed)
    columns, first = [], 0
    for arm, stack in enumerate(stacks):
        drawn = _draw_seeds(len(stack), resamples=resamples, seed=seed, arm=arm)
        columns.append(np.take_along_axis(values, first + drawn[:, :, None], 1).mean(1))
        first += len(stack)
    return np.stack(columns, axis=1)


def interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples (R,): the central `level` of them, 0 < level < 1.

    Raises ValueError on samples that are empty or not finite, and on another level.
    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    values = _finite(samples)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, such as 0.95")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(deltas: ArrayLike) -> float:
    """Two-sided bootstrap p-value of "no difference" from resampled paired differences (R,); in (0, 1].

    Twice the smaller share of resamples on either side of zero, zero itself counted on both: p < 0.05 where
    the 95% percentile interval leaves zero out, but for the +1. The resamples and the observed sample count
    together, (1 + #)/(1 + R): p is never 0, and at 1000 resamples never below 0.002.
    Raises ValueError on deltas that are empty or not finite.
    Source: inverted percentile interval, Efron & Tibshirani 1993, section 15.4; the +1, Davison & Hinkley
    1997, "Bootstrap Methods and their Application", section 4.2.
    """
    values = _finite(deltas)
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1, 2 * (1 + tail) / (1 + len(values))))


def draw_counts(tiles: int, *, resamples: int, seed: int) -> Counts:
    """How often each resample of `tiles` tiles, drawn with replacement, holds each: (tiles, resamples)."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; a bootstrap needs at least 1, and 1000 for an interval")
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, tiles), dtype=np.int32)
    for row in counts:
        row[:] = np.bincount(rng.integers(tiles, size=tiles), minlength=tiles)
    return np.ascontiguousarray(counts.T)


def resampled_average_precision(scores: ArrayLike, targets: ArrayLike, counts: Counts) -> Floats:
    """AP of each label with tile n repeated counts[n, r] times: (R,K), nan where no positive is left.

    scores, targets: (N,K); counts: (N,R), integers >= 0, as from `draw_counts`. ValueError on other shapes.
    """
    s, t = checked(scores, targets)
    if counts.ndim != 2 or len(counts) != len(s):
        raise ValueError(f"counts have shape {counts.shape} for {len(s)} tiles; give (tiles, resamples)")
    blocks = [np.ascontiguousarray(counts[:, r : r + _BLOCK]) for r in range(0, counts.shape[1], _BLOCK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        columns = threads.map(lambda k: _resampled_label(s[:, k], t[:, k], blocks), range(s.shape[1]))
        return np.stack(list(columns), axis=1)


def _resampled_label(scores: Floats, positive: Bools, blocks: list[Counts]) -> Floats:
    """AP of one label, (R,): only thresholds at which a positive stands add to it."""
    order = np.argsort(-scores, kind="stable")
    ascending = -scores[order]
    positives = np.flatnonzero(positive[order])
    if not len(positives):
        return np.full(sum(block.shape[1] for block in blocks), np.nan)
    # thresholds that hold positives: where each one's tiles end, and which positive is its first
    end, first = np.unique(np.searchsorted(ascending, ascending[positives], side="right"), return_index=True)
    start = np.concatenate([[0], end[:-1]])
    reached, right = order[: end[-1]], order[positives]
    parts = []
    for block in blocks:
        seen = np.add.reduceat(block.take(reached, axis=0), start, axis=0).cumsum(0)
        gained = np.add.reduceat(block.take(right, axis=0), first, axis=0)
        found = gained.cumsum(0)
        total = (gained * (found / np.maximum(seen, 1))).sum(0)
        parts.append(np.where(found[-1] > 0, total / np.maximum(found[-1], 1), np.nan))
    return np.concatenate(parts)


def _draw_seeds(seeds: int, *, resamples: int, seed: int, arm: int) -> NDArray[np.int64]:
    """Which of an arm's seeds each resample holds, (resamples, seeds), from a stream of the arm's own."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(arm,)))
    return rng.integers(seeds, size=(resamples, seeds))


def _finite(samples: ArrayLike) -> Floats:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"bootstrap samples have shape {values.shape}, {np.sum(~np.isfinite(values))} not finite; "
            "they must be one number a resample (a resample without any positive has no mAP)"
        )
    return values
