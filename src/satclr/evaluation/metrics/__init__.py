"""Average precision of scores (N,K) on targets (N,K), and how far it would move with other test tiles and seeds.

N tiles, K labels, R resamples; NumPy in float64. Scores are finite, targets 0 and 1; ValueError otherwise. A label
without positives has no AP: it is nan and left out of means, never zero. `decisions` has the other metrics.

A resample is a count for every tile. Scores are sorted once; a resample then costs one gather and two cumulative sums
per label, and equals average precision over the rows repeated that often, ties included. `benchmarks/coverage.py`
measures how often the intervals hold what they should.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int32]

JACKKNIFE_GROUPS = 20
BLOCK = 64  # resamples at a time: the counts of 10,000 tiles then stay in a cache


def average_precision(scores: ArrayLike, targets: ArrayLike, categories: Sequence[str] | None = None) -> Floats:
    """AP of each label: Σ over distinct thresholds of (recall gained there) x (precision there).

    scores, targets: (N,K). Returns (K,) in [0, 1]. Equal scores share one threshold, so the order of tiles does not
    matter. scikit-learn's `average_precision_score` agrees to 1e-12; importing it takes longer than a whole evaluation.

    With the tiles' scene `categories`: AP among tiles of one category, averaged over those where the label varies; nan
    where it varies in none. Scores that are constant in each category have the AP of chance, the label's share there.
    """
    s, t = checked(scores, targets)
    if categories is not None:
        names = np.asarray(categories)
        parts = [(s[names == name], t[names == name]) for name in np.unique(names)]
        return nan_mean(np.transpose([np.where(y.all(0), np.nan, average_precision(x, y)) for x, y in parts]))
    s, t = np.ascontiguousarray(s.T), np.ascontiguousarray(t.T)
    tiles = s.shape[1]
    order = np.argsort(-s, axis=1, kind="stable")
    ranked = np.take_along_axis(s, order, 1)
    hit = np.take_along_axis(t, order, 1)
    hits = np.cumsum(hit, 1)
    # each entry takes its precision from the last entry with the same score
    last = np.ones(ranked.shape, dtype=bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    end = np.where(last, np.arange(tiles), tiles)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(hits, end, 1) / (end + 1)
    count = hits[:, -1]
    return np.where(count > 0, (precision * hit).sum(1) / np.maximum(count, 1), np.nan)


def mean_average_precision(
    scores: ArrayLike, targets: ArrayLike, *, undefined: str = "exclude", categories: Sequence[str] | None = None
) -> float:
    """Macro mAP: the mean AP of the labels that have one; nan when none has.

    undefined: `exclude`, or `zero` to count a label without positives as 0, as the paper's notebook does.
    """
    ap = average_precision(scores, targets, categories)
    return float(nan_mean(np.nan_to_num(ap) if undefined == "zero" else ap))


def nan_mean(values: Floats) -> Floats:
    """The mean over the last axis without its nans; nan, and no warning, where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def checked(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Bools]:
    """Scores as float64 and targets as bool, both (N,K); raises ValueError on other shapes and non-finite scores."""
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if s.ndim != 2 or s.shape != t.shape or not s.size:
        raise ValueError(f"scores have shape {s.shape} and targets {t.shape}; both must be (tiles, labels), not empty")
    if not np.isfinite(s).all():
        raise ValueError(f"{np.sum(~np.isfinite(s))} of {s.size} scores are not finite")
    return s, t.astype(bool)


def paired_bootstrap_average_precision(
    arms: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int, categories: Sequence[str] | None = None
) -> Floats:
    """AP of every arm and label on the same `resamples` draws of N tiles with replacement: (R, arms, K).

    arms: scores (N,K) of each. With the tiles' `categories`, it is AP within categories. nan where a label loses its
    positives. The same seed draws the same tiles.
    """
    pairs = [checked(scores, targets) for scores in arms]
    counts = draw_counts(len(pairs[0][0]), resamples=resamples, seed=seed)
    resampled = _resampled if categories is None else partial(_resampled_within, categories=categories)
    return np.stack([resampled(s, t, counts) for s, t in pairs], axis=1)


def paired_bootstrap_over_seeds(
    arms: Sequence[ArrayLike], targets: ArrayLike, *, resamples: int, seed: int, categories: Sequence[str] | None = None
) -> tuple[Floats, Floats]:
    """AP of every arm and label, averaged over seeds, when tiles are redrawn, and when tiles and seeds are.

    arms: scores (S,N,K) of each, with its own number of seeds S. Returns two arrays (R, arms, K): over tiles
    alone, for `standard_interval`; and with S of each arm's seeds drawn with replacement too, for paired differences.
    Drawing from S seeds understates their variance by (S-1)/S, which matters for three; crossing the draws errs on the
    other side. Source: the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1(2).
    """
    runs = [np.asarray(scores) for scores in arms]
    each = [scores for seeds in runs for scores in seeds]
    values = paired_bootstrap_average_precision(each, targets, resamples=resamples, seed=seed, categories=categories)
    fixed, redrawn = [], []
    for arm, own in enumerate(np.split(values, np.cumsum([len(seeds) for seeds in runs])[:-1], axis=1)):  # (R,S,K)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(arm,)))
        drawn = rng.integers(own.shape[1], size=own.shape[:2])
        fixed.append(own.mean(1))
        redrawn.append(np.take_along_axis(own, drawn[:, :, None], 1).mean(1))
    return np.stack(fixed, axis=1), np.stack(redrawn, axis=1)


def standard_interval(estimate: float, samples: ArrayLike, *, tiles: int, seeds: ArrayLike = ()) -> tuple[float, float]:
    """The 95% interval of one arm's mAP or AP: estimate ± t · standard error, within [0, 1].

    samples (R,): `estimate` on resamples of the N = `tiles` test tiles, nan where it is undefined. seeds (S,): its
    value for each seed, whose mean is `estimate`. The variance is the bootstrap's over tiles, plus s²/S where S > 1;
    t's degrees of freedom are Satterthwaite's. With one seed the interval is over test tiles only. Percentiles of the
    samples would lean upwards: a resample repeats tiles, and AP of repeated positives is higher.
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


def interval(samples: ArrayLike) -> tuple[float, float]:
    """The 95% percentile interval of bootstrap samples (R,). nan samples are left out; nan where there are no others.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    values = np.asarray(samples, float)
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, [(1 - 0.95) / 2, (1 + 0.95) / 2]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def p_value(deltas: ArrayLike) -> float:
    """Two-sided bootstrap p-value of "no difference" from resampled paired differences (R,); in (0, 1].

    Twice the smaller share of resamples on either side of zero, zero itself counted on both: p < 0.05 where the 95%
    percentile interval excludes zero, up to the +1. The observed sample counts as one more resample: p is never below
    2/(1 + R). nan is left out. Source: inverted percentile interval, Efron & Tibshirani 1993, section 15.4; the +1,
    Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 4.2.
    """
    values = np.asarray(deltas, float)
    tail = min((values <= 0).sum(), (values >= 0).sum())
    return float(min(1, 2 * (1 + tail) / (1 + (~np.isnan(values)).sum())))


def wald_p_value(delta: float, samples: ArrayLike) -> float:
    """Two-sided p-value of "no difference" from a difference and its resamples (R,): delta / standard error is normal.

    Unlike `p_value` it has no floor of 2/(1 + R), so it can be adjusted for many comparisons. nan samples are left out.
    """
    from scipy.special import ndtr

    error = float(np.nanstd(np.asarray(samples, float), ddof=1))
    if delta == 0:
        return 1.0
    return float(2 * ndtr(-abs(delta) / error)) if error > 0 else 0.0


def holm(p_values: ArrayLike) -> Floats:
    """P-values (M,) adjusted so that the chance of any false one among the M is kept (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    result = np.empty_like(p)
    result[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return result


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """P-values (M,) adjusted so that the expected share of false ones among those taken is kept.

    Source: Benjamini & Hochberg 1995, JRSS B 57(1). SciPy's own comes with scipy.stats, which takes a second to import.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(-p)
    result = np.empty_like(p)
    result[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1)).clip(max=1)
    return result


def jackknife_bias(scores: ArrayLike, targets: ArrayLike, *, undefined: str = "exclude", seed: int = 0) -> float:
    """How far the mAP of so few tiles lies above that of endlessly many: the jackknife's estimate over groups of tiles.

    AP of few positives is biased upwards. The bootstrap's own estimate is lower and further off (docs/evaluation.md).
    Source: Efron & Tibshirani 1993, section 10.5, with groups left out instead of tiles.
    """
    s, t = checked(scores, targets)
    groups = min(JACKKNIFE_GROUPS, len(s))
    left_out = np.random.default_rng(seed).permutation(len(s)) % groups
    counts = (left_out[:, None] != np.arange(groups)).astype(np.int32)
    rest = _resampled(s, t, counts)
    rest = nan_mean(np.nan_to_num(rest) if undefined == "zero" else rest)
    return float((groups - 1) * (nan_mean(rest) - mean_average_precision(s, t, undefined=undefined)))


def draw_counts(tiles: int, *, resamples: int, seed: int) -> Counts:
    """How often each resample of `tiles` tiles, drawn with replacement, has each: (tiles, resamples)."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(tiles, size=tiles) for _ in range(resamples))
    return np.stack([np.bincount(rows, minlength=tiles).astype(np.int32) for rows in drawn], axis=1)


def _resampled(scores: Floats, positive: Bools, counts: Counts) -> Floats:
    """AP of each label with tile n repeated counts[n, r] times: (R,K), nan where no positive is left."""
    blocks = [np.ascontiguousarray(counts[:, r : r + BLOCK]) for r in range(0, counts.shape[1], BLOCK)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        columns = threads.map(lambda k: _resampled_label(scores[:, k], positive[:, k], blocks), range(scores.shape[1]))
        return np.stack(list(columns), axis=1)


def _resampled_within(scores: Floats, positive: Bools, counts: Counts, categories: Sequence[str]) -> Floats:
    """AP within categories of each label on each resample: (R,K); a category counts where both kinds were drawn."""
    names, total = np.asarray(categories), np.zeros((2, counts.shape[1], positive.shape[1]))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        t, drawn = positive[rows], counts[rows]
        varies = np.flatnonzero(t.any(0) & ~t.all(0))
        if len(varies):
            ap = _resampled(scores[np.ix_(rows, varies)], t[:, varies], drawn)
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
