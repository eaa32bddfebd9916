"""Average precision: scores and targets (N,K) in, one number a label out, and their means."""

import numpy as np
from numpy.typing import ArrayLike

from satclr.evaluation.metrics.inputs import Bools, Floats, checked


def average_precision(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """AP of each label: Σ over distinct thresholds of (recall gained there) x (precision there).

    scores: (N,K) finite, higher is more likely; targets: (N,K) of 0 and 1.
    Returns (K,) in [0, 1]; nan where a label has no positive. Equal scores share one threshold, so the order
    of tiles does not matter; scikit-learn's `average_precision_score` agrees to 1e-12.
    Raises ValueError on unequal shapes, non-finite scores or other targets.
    """
    s, t = checked(scores, targets)
    return row_average_precision(np.ascontiguousarray(s.T), np.ascontiguousarray(t.T))


def mean_average_precision(ap: ArrayLike) -> float:
    """Macro mAP: the mean of ap (K,) over labels that have one; nan when none has."""
    return float(nan_mean(np.asarray(ap, dtype=np.float64)))


def micro_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """AP of all (tile, label) decisions ranked together; arguments and errors as `average_precision`'s."""
    s, t = checked(scores, targets)
    return float(row_average_precision(s.reshape(1, -1), t.reshape(1, -1))[0])


def nan_mean(values: Floats) -> Floats:
    """The mean over the last axis without its nans; nan, and no warning, where nothing else is left."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def row_average_precision(scores: Floats, positive: Bools) -> Floats:
    """AP of every row of scores (R,C), each ranking its C columns: (R,), nan in rows without positives."""
    columns = scores.shape[1]
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    hit = np.take_along_axis(positive, order, 1)
    hits = np.cumsum(hit, 1)
    # each entry reads its precision at the last entry that has the same score
    last = np.ones(ranked.shape, dtype=bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    end = np.where(last, np.arange(columns), columns)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(hits, end, 1) / (end + 1)
    count = hits[:, -1]
    return np.where(count > 0, (precision * hit).sum(1) / np.maximum(count, 1), np.nan)
