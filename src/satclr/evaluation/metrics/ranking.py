"""How well scores rank: the tiles of each label (AP, mAP) and the labels of each tile (LRAP, one-error, coverage).

scikit-learn has most of these too and the tests compare them; importing it takes longer than a whole evaluation.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def average_precision(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """AP of each label: Σ over distinct thresholds of (recall gained there) x (precision there).

    scores: (N,K) finite, higher is more likely; targets: (N,K) of 0 and 1; ValueError otherwise. Returns (K,) in
    [0, 1]; nan where a label has no positive. Equal scores share one threshold, so the order of tiles does not
    matter; scikit-learn's `average_precision_score` agrees to 1e-12.
    """
    s, t = checked(scores, targets)
    return _row_average_precision(np.ascontiguousarray(s.T), np.ascontiguousarray(t.T))


def mean_average_precision(ap: ArrayLike, *, undefined: str = "exclude") -> float:
    """Macro mAP: the mean of ap (K,) over the labels that have one; nan when none has.

    undefined: `exclude`, or `zero` to count a label without positives as 0, as the paper's notebook does.
    """
    values = np.asarray(ap, dtype=np.float64)
    return float(nan_mean(np.nan_to_num(values) if undefined == "zero" else values))


def within_category_average_precision(scores: ArrayLike, targets: ArrayLike, categories: Sequence[str]) -> Floats:
    """AP of each label among tiles of one scene category, averaged over the categories where the label varies: (K,).

    Arguments and errors as `average_precision`'s, and the tiles' categories (N). nan where a label varies in none.
    Knowing a tile's category is of no use: scores that are constant in each category have the AP of chance, the
    label's share there.
    """
    s, t = checked(scores, targets)
    names = np.asarray(categories)
    each = []
    for name in np.unique(names):
        rows = names == name
        ap = average_precision(s[rows], t[rows])
        each.append(np.where(t[rows].all(0), np.nan, ap))
    return nan_mean(np.transpose(each))


def micro_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """AP of all (tile, label) decisions ranked together; arguments and errors as `average_precision`'s."""
    s, t = checked(scores, targets)
    return float(_row_average_precision(s.reshape(1, -1), t.reshape(1, -1))[0])


def label_ranking_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """LRAP: AP of each tile's ranking of the labels, averaged over tiles; in (0, 1].

    Arguments and errors as `average_precision`'s. A tile without labels counts as 1, as in scikit-learn.
    Source: Tsoumakas, Katakis & Vlahavas 2010, "Mining Multi-label Data".
    """
    s, t = checked(scores, targets)
    return float(np.where(t.any(1), _row_average_precision(s, t), 1).mean())


def one_error(scores: ArrayLike, targets: ArrayLike) -> float:
    """How often a tile's top label is wrong, in [0, 1]; a tie at the top counts its share of wrong labels.

    Arguments and errors as `average_precision`'s. A tile without labels is always wrong.
    Source: Schapire & Singer 2000, "BoosTexter".
    """
    s, t = checked(scores, targets)
    top = s == s.max(1, keepdims=True)
    return float(1 - ((top & t).sum(1) / top.sum(1)).mean())


def coverage_error(scores: ArrayLike, targets: ArrayLike) -> float:
    """How many labels, from the top, include all of a tile's own; averaged over tiles, in [0, K].

    Arguments and errors as `average_precision`'s. Ties count in full, a tile without labels as 0, as in scikit-learn.
    Source: Tsoumakas, Katakis & Vlahavas 2010, "Mining Multi-label Data" (there less 1).
    """
    s, t = checked(scores, targets)
    lowest = np.where(t, s, np.inf).min(1, keepdims=True)
    return float((s >= lowest).sum(1).mean())


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


def _row_average_precision(scores: Floats, positive: Bools) -> Floats:
    """AP of every row of scores (R,C), each ranking its C columns: (R,), nan in rows without positives."""
    columns = scores.shape[1]
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    hit = np.take_along_axis(positive, order, 1)
    hits = np.cumsum(hit, 1)
    # each entry takes its precision from the last entry with the same score
    last = np.ones(ranked.shape, dtype=bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    end = np.where(last, np.arange(columns), columns)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(hits, end, 1) / (end + 1)
    count = hits[:, -1]
    return np.where(count > 0, (precision * hit).sum(1) / np.maximum(count, 1), np.nan)
