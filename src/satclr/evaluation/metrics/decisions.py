"""Yes-or-no tagging: thresholds tuned on one split, precision, recall and F1 at them on another."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from satclr.evaluation.metrics.inputs import Floats, checked
from satclr.evaluation.metrics.precision import nan_mean


@dataclass(frozen=True, slots=True)
class Decisions:
    """Precision, recall and F1 of yes-or-no decisions, each (K,), over labels (macro) and over all (micro).

    A label without positives has no recall and no F1 (nan, left out of macro_f1); nothing predicted is
    precision 0. Micro values count every (tile, label) decision, also those of labels without positives.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    macro_f1: float
    micro_precision: float
    micro_recall: float
    micro_f1: float


def tune_thresholds(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """The threshold of each label that gives its best F1 when `score >= threshold` means yes: (K,).

    scores: (N,K) finite; targets: (N,K) of 0 and 1; ValueError otherwise. Every distinct score is tried;
    among equally good thresholds the highest, which says yes least, is taken. A label without positives gets
    inf: never yes. Tune on the validation split, decide on the test split.
    """
    s, t = checked(scores, targets)
    order = np.argsort(-s, axis=0, kind="stable")
    ranked = np.take_along_axis(s, order, 0)
    found = np.cumsum(np.take_along_axis(t, order, 0), axis=0)
    said_yes = np.arange(1, len(s) + 1)[:, None]
    f1 = 2 * found / (said_yes + t.sum(0))
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
        raise ValueError(f"thresholds are {limits} for scores of shape {s.shape}; give one number for each label")
    yes = s >= limits
    hits, said, real = (yes & t).sum(0), yes.sum(0), t.sum(0)
    f1 = _f1(hits, said, real)
    return Decisions(
        precision=_share(hits, said),
        recall=np.where(real > 0, _share(hits, real), np.nan),
        f1=f1,
        macro_f1=float(nan_mean(f1)),
        micro_precision=float(_share(hits.sum(), said.sum())),
        micro_recall=float(np.where(t.any(), _share(hits.sum(), real.sum()), np.nan)),
        micro_f1=float(_f1(hits.sum(), said.sum(), real.sum())),
    )


def _share(part: ArrayLike, whole: ArrayLike) -> Floats:
    return np.asarray(part) / np.maximum(whole, 1)


def _f1(hits: ArrayLike, said: ArrayLike, real: ArrayLike) -> Floats:
    return np.where(np.asarray(real) > 0, _share(2 * np.asarray(hits), np.add(said, real)), np.nan)
