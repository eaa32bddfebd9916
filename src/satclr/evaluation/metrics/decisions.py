"""Which labels a tile has: thresholds, calibration, and the ranking of each tile's labels.

Scores (N,K), finite, and targets (N,K) of 0 and 1 in; ValueError otherwise. Thresholds and temperature are fitted on
validation tiles.
"""

import numpy as np
from numpy.typing import ArrayLike

from satclr.evaluation.metrics import Bools, Floats, average_precision, checked

NEVER = 2.0  # a threshold above any probability, for a label that validation tiles lack
TEMPERATURE_RANGE = (0.01, 100.0)
BINS = 15  # of the calibration error


def tune_thresholds(probabilities: ArrayLike, targets: ArrayLike) -> Floats:
    """The threshold of each label with the best F1 when `probability >= threshold` means yes: (K,).

    Every distinct probability is tried, the highest first. A label without positives gets NEVER.
    """
    p, t = checked(probabilities, targets)
    order = np.argsort(-p, axis=0, kind="stable")
    ranked = np.take_along_axis(p, order, 0)
    hits = np.cumsum(np.take_along_axis(t, order, 0), axis=0)
    predicted = np.arange(1, len(p) + 1)[:, None]
    f1 = 2 * hits / (predicted + t.sum(0))
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are accepted together or not at all
    best = np.take_along_axis(ranked, f1.argmax(0)[None], 0)[0]
    return np.where(t.any(0), best, NEVER)


def precision_recall_f1(yes: Bools, targets: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of yes-or-no decisions (N,K), each (K,).

    A label without positives has no recall and no F1 (nan); without predictions, precision is 0.
    """
    t = np.asarray(targets, dtype=bool)
    hits, predicted, positives = (yes & t).sum(0), yes.sum(0), np.where(t.any(0), t.sum(0), np.nan)
    return hits / np.maximum(predicted, 1), hits / positives, 2 * hits / (predicted + positives)


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """ECE over all (tile, label) decisions: mean gap between probability and share of positives; in [0, 1].

    Bins are equally wide, closed below and open above, the last closed, and weighted by the number of decisions in
    them. Source: Guo et al. 2017, arXiv:1706.04599, with the probability of yes as the confidence.
    """
    p, t = checked(probabilities, targets)
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1).ravel()
    gap = np.bincount(place, weights=(p - t).ravel(), minlength=BINS)
    return float(np.abs(gap).sum() / p.size)


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature T that minimises the binary cross-entropy of sigmoid(logits / T).

    One T for all labels, within TEMPERATURE_RANGE: perfectly separated logits end at its lower end, logits no better
    than chance at its upper, and zeros at 1. The problem is convex in 1/T: bisection of its slope. Dividing by T
    changes no ranking, so no AP. Source: Guo et al. 2017, arXiv:1706.04599.
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


def label_ranking_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """LRAP: AP of each tile's ranking of the labels, averaged over tiles; in (0, 1].

    A tile without labels counts as 1, as in scikit-learn. Source: Tsoumakas et al. 2010, "Mining Multi-label Data".
    """
    s, t = checked(scores, targets)
    return float(np.where(t.any(1), average_precision(s.T, t.T), 1).mean())


def one_error(scores: ArrayLike, targets: ArrayLike) -> float:
    """How often a tile's top label is wrong, in [0, 1]; a tie at the top counts its share of wrong labels.

    A tile without labels is always wrong. Source: Schapire & Singer 2000, "BoosTexter".
    """
    s, t = checked(scores, targets)
    top = s == s.max(1, keepdims=True)
    return float(1 - ((top & t).sum(1) / top.sum(1)).mean())


def coverage_error(scores: ArrayLike, targets: ArrayLike) -> float:
    """How many labels, from the top, include all of a tile's own; averaged over tiles, in [0, K].

    Ties count in full, a tile without labels as 0, as in scikit-learn. Source: Tsoumakas et al. 2010 (there less 1).
    """
    s, t = checked(scores, targets)
    lowest = np.where(t, s, np.inf).min(1, keepdims=True)
    return float((s >= lowest).sum(1).mean())
