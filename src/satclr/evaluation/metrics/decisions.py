"""From scores to decisions: thresholds and temperature fitted on one split, F1 and calibration measured on another."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from satclr.evaluation.metrics.ranking import Floats, checked, nan_mean

TEMPERATURE_RANGE = (0.01, 100.0)


@dataclass(frozen=True, slots=True)
class Decisions:
    """Precision, recall and F1 of yes-or-no decisions: per label (K,), macro (mean over labels) and micro (pooled).

    A label without positives has no recall and no F1 (nan, left out of macro_f1); without predictions, precision
    is 0. Micro values count every (tile, label) decision, also those of labels without positives.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    macro_f1: float
    micro_precision: float
    micro_recall: float
    micro_f1: float


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


def decide(scores: ArrayLike, targets: ArrayLike, thresholds: ArrayLike) -> Decisions:
    """Precision, recall and F1 where `score >= threshold` means yes.

    scores: (N,K) finite; targets: (N,K) of 0 and 1; thresholds: (K,), inf for never; ValueError otherwise.
    """
    s, t = checked(scores, targets)
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape != s.shape[1:] or np.isnan(limits).any():
        raise ValueError(
            f"thresholds are {limits} for scores of shape {s.shape}; give one number for each label"
        )
    yes = s >= limits
    hits, predicted, positives = (yes & t).sum(0), yes.sum(0), t.sum(0)
    f1 = _f1(hits, predicted, positives)
    return Decisions(
        precision=_ratio(hits, predicted),
        recall=np.where(positives > 0, _ratio(hits, positives), np.nan),
        f1=f1,
        macro_f1=float(nan_mean(f1)),
        micro_precision=float(_ratio(hits.sum(), predicted.sum())),
        micro_recall=float(np.where(t.any(), _ratio(hits.sum(), positives.sum()), np.nan)),
        micro_f1=float(_f1(hits.sum(), predicted.sum(), positives.sum())),
    )


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """ECE over all (tile, label) decisions: mean gap between probability and share of positives; in [0, 1].

    probabilities: (N,K) in [0, 1], that the label applies; targets: (N,K) of 0 and 1. Bins are equally wide,
    closed below and open above, the last closed, and weighted by the number of decisions in them.
    Raises ValueError on other values or bins < 1.
    Source: Guo et al. 2017, arXiv:1706.04599, with the probability of yes as the confidence.
    """
    p, t = checked(probabilities, targets)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(
            f"probabilities span {p.min():g} to {p.max():g}; they must lie in [0, 1]: take a sigmoid first"
        )
    if bins < 1:
        raise ValueError(f"bins is {bins}; give at least 1")
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


def _ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    return np.asarray(part) / np.maximum(whole, 1)


def _f1(hits: ArrayLike, predicted: ArrayLike, positives: ArrayLike) -> Floats:
    f1 = _ratio(2 * np.asarray(hits), np.add(predicted, positives))
    return np.where(np.asarray(positives) > 0, f1, np.nan)
