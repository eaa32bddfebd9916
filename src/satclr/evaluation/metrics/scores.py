"""How well scores rank, and how well they decide.

Rankings are of the tiles of each label (AP, mAP) and of the labels of each tile (LRAP, one-error, coverage). For
decisions, thresholds and a temperature are fitted on one split; F1 and calibration are measured on another.

scikit-learn has most of these too and the tests compare them; importing it takes longer than a whole evaluation.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TEMPERATURE_RANGE = (0.01, 100.0)


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


def tune_thresholds(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """The threshold of each label with the best F1 when `score >= threshold` means yes: (K,).

    scores: (N,K) finite; targets: (N,K) of 0 and 1; ValueError otherwise. Every distinct score is tried; of
    equally good thresholds the highest is taken. A label without positives gets inf: never yes. Tune on the
    validation split, decide on the test split.
    """
    s, t = checked(scores, targets)
    order = np.argsort(-s, axis=0, kind="stable")
    ranked = np.take_along_axis(s, order, 0)
    hits = np.cumsum(np.take_along_axis(t, order, 0), axis=0)
    predicted = np.arange(1, len(s) + 1)[:, None]
    f1 = 2 * hits / (predicted + t.sum(0))
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are accepted together or not at all
    best = np.take_along_axis(ranked, f1.argmax(0)[None], 0)[0]
    return np.where(t.any(0), best, np.inf)


def precision_recall_f1(yes: Bools, targets: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of yes-or-no decisions (N,K), each (K,).

    A label without positives has no recall and no F1 (nan); without predictions, precision is 0.
    """
    t = np.asarray(targets, dtype=bool)
    hits, predicted, positives = (yes & t).sum(0), yes.sum(0), t.sum(0)
    recall, f1 = hits / np.maximum(positives, 1), 2 * hits / np.maximum(predicted + positives, 1)
    known = positives > 0
    return hits / np.maximum(predicted, 1), np.where(known, recall, np.nan), np.where(known, f1, np.nan)


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """ECE over all (tile, label) decisions: mean gap between probability and share of positives; in [0, 1].

    probabilities: (N,K) in [0, 1], that the label applies; targets: (N,K) of 0 and 1; ValueError otherwise. Bins are
    equally wide, closed below and open above, the last closed, and weighted by the number of decisions in them.
    Source: Guo et al. 2017, arXiv:1706.04599, with the probability of yes as the confidence.
    """
    p, t = checked(probabilities, targets)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probabilities span {p.min():g} to {p.max():g}; take a sigmoid first")
    place = np.minimum((p * bins).astype(np.int64), bins - 1).ravel()
    gap = np.bincount(place, weights=(p - t).ravel(), minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature T that minimises the binary cross-entropy of sigmoid(logits / T).

    logits: (N,K) finite; targets: (N,K) of 0 and 1; ValueError otherwise. One T for all labels, within
    TEMPERATURE_RANGE: perfectly separated logits end at its lower end, logits no better than chance at its
    upper, and zeros at 1. The problem is convex in 1/T: bisection of its slope. Fit on the validation split.
    Dividing by T changes no ranking, so no AP.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    z, t = checked(logits, targets)
    if not z.any():
        return 1.0
    cold, hot = TEMPERATURE_RANGE
    for _ in range(55):  # halves ln(hot / cold) to less than the last digit
        middle = float(np.sqrt(cold * hot))
        slope = (z * (sigmoid(z / middle) - t)).sum()  # of the summed cross-entropy by 1/T
        cold, hot = (middle, hot) if slope > 0 else (cold, middle)
    return float(np.sqrt(cold * hot))


def sigmoid(logits: ArrayLike) -> Floats:
    """1 / (1 + exp(-logits)) without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits, dtype=np.float64)))


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
