"""How far a mAP, or a difference of two, would move with other test tiles and other seeds.

A resample is a count for every tile. Scores are sorted once; a resample then costs one gather and two
cumulative sums per label, and equals average precision over the rows repeated that often, ties included.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satclr.evaluation.metrics.ranking import Bools, Floats, checked, nan_mean

Counts = NDArray[np.int32]
BLOCK = 64  # resamples at a time: the counts of 10,000 tiles then stay in a cache


def paired_bootstrap(scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int) -> Floats:
    """Macro mAP of every arm on the same resamples: (resamples, arms); a contrast is a difference of columns.

    Arguments and errors as `paired_bootstrap_average_precision`'s. A label that loses all its positives in a
    resample is left out of that resample's mean.
    """
    return nan_mean(paired_bootstrap_average_precision(scores_by_arm, targets, resamples=resamples, seed=seed))


def paired_bootstrap_average_precision(
    scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int
) -> Floats:
    """AP of every arm and label on the same `resamples` draws of N tiles with replacement: (resamples, arms, K).

    scores_by_arm: A arrays (N,K), finite; targets: (N,K) of 0 and 1. nan where a label loses its positives. The same
    seed draws the same tiles. Raises ValueError as `average_precision` does, without arms, and on resamples < 1.
    """
    if not len(scores_by_arm):
        raise ValueError("scores_by_arm is empty; give one array (tiles, labels) for each arm")
    pairs = [checked(scores, targets) for scores in scores_by_arm]
    counts = draw_counts(len(pairs[0][0]), resamples=resamples, seed=seed)
    return np.stack([resampled_average_precision(s, t, counts) for s, t in pairs], axis=1)


def paired_bootstrap_over_seeds(
    scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int
) -> Floats:
    """AP of every arm and label, averaged over seeds, when both tiles and seeds are redrawn: (resamples, arms, K).

    scores_by_arm: A arrays (S,N,K), each with its own number of seeds S. A resample draws tiles once, for all arms
    and seeds, and separately S of each arm's seeds with replacement; its value is the mean AP of the drawn seeds.
    Drawing from S seeds understates their variance by (S-1)/S, which matters for three; crossing the draws
    errs on the other side.
    Source: the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2).
    """
    runs = [scores for arm in scores_by_arm for scores in np.asarray(arm)]
    values = paired_bootstrap_average_precision(runs, targets, resamples=resamples, seed=seed)
    columns, first = [], 0
    for arm, scores in enumerate(scores_by_arm):
        seeds = len(np.asarray(scores))
        drawn = _draw_seeds(seeds, resamples=resamples, seed=seed, arm=arm)
        columns.append(np.take_along_axis(values, first + drawn[:, :, None], 1).mean(1))
        first += seeds
    return np.stack(columns, axis=1)


def interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples (R,): the central `level` of them, 0 < level < 1.

    nan, of a resample that drew no positive, is left out. Raises ValueError on samples that are empty or infinite.
    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    low, high = np.quantile(_finite(samples), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(deltas: ArrayLike) -> float:
    """Two-sided bootstrap p-value of "no difference" from resampled paired differences (R,); in (0, 1].

    Twice the smaller share of resamples on either side of zero, zero itself counted on both: p < 0.05 where
    the 95% percentile interval excludes zero, up to the +1. The resamples and the observed sample count
    together, (1 + #)/(1 + R): p is never 0, and at 1000 resamples never below 0.002.
    nan is left out. Raises ValueError on deltas that are empty or infinite.
    Source: inverted percentile interval, Efron & Tibshirani 1993, section 15.4; the +1, Davison & Hinkley
    1997, "Bootstrap Methods and their Application", section 4.2.
    """
    values = _finite(deltas)
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1, 2 * (1 + tail) / (1 + len(values))))


def draw_counts(tiles: int, *, resamples: int, seed: int) -> Counts:
    """How often each resample of `tiles` tiles, drawn with replacement, has each: (tiles, resamples)."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; a bootstrap needs at least 1, and 1000 for an interval")
    rng = np.random.default_rng(seed)
    rows = [np.bincount(rng.integers(tiles, size=tiles), minlength=tiles) for _ in range(resamples)]
    return np.ascontiguousarray(np.array(rows, dtype=np.int32).T)


def resampled_average_precision(scores: ArrayLike, targets: ArrayLike, counts: Counts) -> Floats:
    """AP of each label with tile n repeated counts[n, r] times: (R,K), nan where no positive is left.

    scores, targets: (N,K); counts: (N,R), as from `draw_counts`.
    """
    s, t = checked(scores, targets)
    blocks = [np.ascontiguousarray(counts[:, r : r + BLOCK]) for r in range(0, counts.shape[1], BLOCK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        columns = threads.map(lambda k: _resampled_label(s[:, k], t[:, k], blocks), range(s.shape[1]))
        return np.stack(list(columns), axis=1)


def _resampled_label(scores: Floats, positive: Bools, blocks: list[Counts]) -> Floats:
    """AP of one label, (R,): only thresholds with a positive add to it."""
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
        hits = gained.cumsum(0)
        total = (gained * (hits / np.maximum(seen, 1))).sum(0)
        parts.append(np.where(hits[-1] > 0, total / np.maximum(hits[-1], 1), np.nan))
    return np.concatenate(parts)


def _draw_seeds(seeds: int, *, resamples: int, seed: int, arm: int) -> NDArray[np.int64]:
    """The seeds of each resample, (resamples, seeds), drawn from a stream of the arm's own."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(arm,)))
    return rng.integers(seeds, size=(resamples, seeds))


def _finite(samples: ArrayLike) -> Floats:
    values = np.asarray(samples, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} of {values.shape} bootstrap samples are not finite")
    return values
