"""Whether a probability means what it says, and the one number that mends most of it."""

import numpy as np
from numpy.typing import ArrayLike

from satclr.evaluation.metrics.inputs import Bools, Floats, checked

TEMPERATURE_RANGE = (0.01, 100.0)


def expected_calibration_error(probabilities: ArrayLike, targets: ArrayLike, *, bins: int = 15) -> float:
    """ECE over all (tile, label) decisions: mean gap between probability and share of positives; in [0, 1].

    probabilities: (N,K) in [0, 1], that the label is there; targets: (N,K) of 0 and 1. Bins are equally
    wide, closed below and open above, the last closed; each weighs as many decisions as it holds.
    Raises ValueError on other values or bins < 1.
    Source: Guo et al. 2017, arXiv:1706.04599, with the probability of yes for the confidence.
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
    upper, and zeros at 1. The problem is convex in 1/T; Newton's method inside a bracket solves
    it. Fit on the validation split. Dividing by T moves no ranking, so no AP.
    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    z, t = checked(logits, targets)
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    if not z.any():
        return 1.0
    if _slope(z, t, high)[0] <= 0:
        return 1 / high
    if _slope(z, t, low)[0] >= 0:
        return 1 / low
    inverse = 1.0
    for _ in range(100):
        slope, curvature = _slope(z, t, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else np.inf
        following = newton if low <= newton <= high else float(np.sqrt(low * high))
        if abs(following - inverse) <= 1e-12 * inverse:
            break
        inverse = following
    return 1 / inverse


def _slope(logits: Floats, targets: Bools, inverse: float) -> tuple[float, float]:
    """First and second derivative of the summed cross-entropy by 1/T."""
    p = sigmoid(inverse * logits)
    return float((logits * (p - targets)).sum()), float((logits**2 * p * (1 - p)).sum())


def sigmoid(logits: ArrayLike) -> Floats:
    """1 / (1 + exp(-logits)) without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits, dtype=np.float64)))
