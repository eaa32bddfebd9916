"""From scores to decisions: thresholds and temperature fitted on one split, F1 and calibration measured on another."""

import numpy as np
from numpy.typing import ArrayLike

from satclr.evaluation.metrics.ranking import Bools, Floats, checked

TEMPERATURE_RANGE = (0.01, 100.0)


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
