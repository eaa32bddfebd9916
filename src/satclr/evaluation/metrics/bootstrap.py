"""How far a mAP, or a difference of two, would move with other test tiles and other seeds.

A resample is a count for every tile. Scores are sorted once; a resample then costs one gather and two
cumulative sums per label, and equals average precision over the rows repeated that often, ties included.
`benchmarks/coverage.py` measures how often the intervals hold what they should.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from satclr.evaluation.metrics.scores import Bools, Floats, average_precision, checked, mean_average_precision, nan_mean

Counts = NDArray[np.int32]
JACKKNIFE_GROUPS = 20
BLOCK = 64  # resamples at a time: the counts of 10,000 tiles then stay in a cache


def paired_bootstrap_average_precision(
    scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int,
    categories: Sequence[str] | None = None,
) -> Floats:  # fmt: skip
    """AP of every arm and label on the same `resamples` draws of N tiles with replacement: (resamples, arms, K).

    scores_by_arm: A arrays (N,K), finite; targets: (N,K) of 0 and 1. nan where a label loses its positives. With
    the tiles' `categories` (N), it is AP within categories (`within_category_average_precision`). The same seed
    draws the same tiles. Raises ValueError as `average_precision` does, without arms, and on resamples < 1.
    """
    if not len(scores_by_arm):
        raise ValueError("scores_by_arm is empty; give one array (tiles, labels) for each arm")
    pairs = [checked(scores, targets) for scores in scores_by_arm]
    counts = draw_counts(len(pairs[0][0]), resamples=resamples, seed=seed)
    if categories is None:
        return np.stack([resampled_average_precision(s, t, counts) for s, t in pairs], axis=1)
    return np.stack([_resampled_within(s, t, counts, categories) for s, t in pairs], axis=1)


def paired_bootstrap_over_seeds(
    scores_by_arm: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int,
    categories: Sequence[str] | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """AP of every arm and label, averaged over seeds, when tiles are redrawn, and when tiles and seeds are.

    scores_by_arm: A arrays (S,N,K), each with its own number of seeds S. Returns two arrays (resamples, arms, K): over
    tiles alone, for `standard_interval`; and with S of each arm's seeds drawn with replacement too, for paired
    differences. Drawing from S seeds understates their variance by (S-1)/S, which matters for three; crossing the
    draws errs on the other side. Other arguments and errors are `paired_bootstrap_average_precision`'s.
    Source: the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2).
    """
    runs = [scores for arm in scores_by_arm for scores in np.asarray(arm)]
    values = paired_bootstrap_average_precision(runs, targets, resamples=resamples, seed=seed, categories=categories)
    fixed, redrawn, first = [], [], 0
    for arm, scores in enumerate(scores_by_arm):
        seeds = len(np.asarray(scores))
        drawn = _draw_seeds(seeds, resamples=resamples, seed=seed, arm=arm)
        fixed.append(values[:, first : first + seeds].mean(1))
        redrawn.append(np.take_along_axis(values, first + drawn[:, :, None], 1).mean(1))
        first += seeds
    return np.stack(fixed, axis=1), np.stack(redrawn, axis=1)


def standard_interval(estimate: float, samples: ArrayLike, *, tiles: int, seeds: ArrayLike = ()) -> tuple[float, float]:
    """The 95% interval of one arm's mAP or AP: estimate ± t · standard error, within [0, 1].

    samples (R,): `estimate` on resamples of the N = `tiles` test tiles, nan where it is undefined. seeds (S,): its
    value for each seed, whose mean is `estimate`. The variance is the bootstrap's over tiles, plus s²/S where S > 1;
    t's degrees of freedom are Satterthwaite's. With one seed the interval is over test tiles only.

    Percentiles of the samples would lean upwards: a resample repeats tiles, and AP of repeated positives is higher.
    """
    from scipy.special import stdtrit

    values, each = np.asarray(samples, float), np.asarray(seeds, float)
    parts = [(np.nanvar(values, ddof=1) if (~np.isnan(values)).sum() > 1 else 0.0, max(tiles - 1, 1))]
    if len(each) > 1:
        parts.append((each.var(ddof=1) / len(each), len(each) - 1))
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return float(estimate), float(estimate)
    reach = stdtrit(variance**2 / sum(part**2 / free for part, free in parts), 0.975) * np.sqrt(variance)
    return max(0.0, float(estimate - reach)), min(1.0, float(estimate + reach))


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


def wald_p_value(delta: float, samples: ArrayLike) -> float:
    """Two-sided p-value of "no difference" from a difference and its resamples (R,): delta / standard error is normal.

    Unlike `p_value` it has no floor of 2/(1 + R), so it can be adjusted for many comparisons. nan samples are left out.
    """
    from scipy.special import ndtr

    error = float(np.nanstd(np.asarray(samples, float), ddof=1))
    return 1.0 if delta == 0 else float(2 * ndtr(-abs(delta) / error)) if error > 0 else 0.0


def holm(p_values: ArrayLike) -> Floats:
    """P-values (M,) adjusted so that the chance of any false one among the M is kept (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    result = np.empty_like(p)
    result[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return result


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """P-values (M,) adjusted so that the expected share of false ones among those taken is kept.

    Source: Benjamini & Hochberg 1995, JRSS B 57(1).
    """
    p = np.asarray(p_values, float)
    order = np.argsort(-p)
    result = np.empty_like(p)
    result[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1)).clip(max=1)
    return result


def jackknife_bias(scores: ArrayLike, targets: ArrayLike, *, undefined: str = "exclude", seed: int = 0) -> float:
    """How far the mAP of so few tiles lies above that of endlessly many: the jackknife's estimate over groups of tiles.

    AP of few positives is biased upwards. Arguments and errors as `average_precision`'s; undefined as
    `mean_average_precision`'s. The bootstrap's own estimate is lower and further off (docs/evaluation.md).
    Source: Efron & Tibshirani 1993, section 10.5, with groups left out instead of tiles.
    """
    s, t = checked(scores, targets)
    groups = min(JACKKNIFE_GROUPS, len(s))
    left_out = np.random.default_rng(seed).permutation(len(s)) % groups
    counts = (left_out[:, None] != np.arange(groups)).astype(np.int32)
    rest = [mean_average_precision(ap, undefined=undefined) for ap in resampled_average_precision(s, t, counts)]
    whole = mean_average_precision(average_precision(s, t), undefined=undefined)
    return float((groups - 1) * (nan_mean(np.array(rest)) - whole))


def draw_counts(tiles: int, *, resamples: int, seed: int) -> Counts:
    """How often each resample of `tiles` tiles, drawn with replacement, has each: (tiles, resamples)."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; a bootstrap needs at least 1, and 1000 for an interval")
    rng = np.random.default_rng(seed)
    rows = np.empty((resamples, tiles), np.int32)
    for row in rows:
        row[:] = np.bincount(rng.integers(tiles, size=tiles), minlength=tiles)
    return np.ascontiguousarray(rows.T)


def resampled_average_precision(scores: ArrayLike, targets: ArrayLike, counts: Counts) -> Floats:
    """AP of each label with tile n repeated counts[n, r] times: (R,K), nan where no positive is left.

    scores, targets: (N,K); counts: (N,R), as from `draw_counts`.
    """
    s, t = checked(scores, targets)
    blocks = [np.ascontiguousarray(counts[:, r : r + BLOCK]) for r in range(0, counts.shape[1], BLOCK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        columns = threads.map(lambda k: _resampled_label(s[:, k], t[:, k], blocks), range(s.shape[1]))
        return np.stack(list(columns), axis=1)


def _resampled_within(scores: Floats, positive: Bools, counts: Counts, categories: Sequence[str]) -> Floats:
    """AP within categories of each label on each resample: (R,K); a category counts where both kinds were drawn."""
    names, total = np.asarray(categories), np.zeros((2, counts.shape[1], positive.shape[1]))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        t, drawn = positive[rows], counts[rows]
        varies = np.flatnonzero(t.any(0) & ~t.all(0))
        if len(varies):
            ap = resampled_average_precision(scores[np.ix_(rows, varies)], t[:, varies], drawn)
            known = ~np.isnan(ap) & (drawn.T @ ~t[:, varies] > 0)
            total[:, :, varies] += np.where(known, ap, 0), known
    return np.where(total[1] > 0, total[0] / np.maximum(total[1], 1), np.nan)


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
