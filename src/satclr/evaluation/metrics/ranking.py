"""How well each tile's labels are ranked: scores and targets (N,K) in, a mean over tiles out."""

import numpy as np
from numpy.typing import ArrayLike

from satclr.evaluation.metrics.inputs import checked
from satclr.evaluation.metrics.precision import row_average_precision


def label_ranking_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """LRAP: AP of each tile's ranking of the labels, averaged over tiles; in (0, 1].

    scores: (N,K) finite; targets: (N,K) of 0 and 1; ValueError otherwise. A tile without labels counts as 1,
    as in scikit-learn.
    Source: Tsoumakas, Katakis & Vlahavas 2010, "Mining Multi-label Data".
    """
    s, t = checked(scores, targets)
    return float(np.where(t.any(1), row_average_precision(s, t), 1).mean())


def one_error(scores: ArrayLike, targets: ArrayLike) -> float:
    """How often a tile's top label is wrong, in [0, 1]; a tie at the top counts its share of wrong labels.

    Arguments and errors as `label_ranking_average_precision`'s. A tile without labels is always wrong.
    Source: Schapire & Singer 2000, "BoosTexter".
    """
    s, t = checked(scores, targets)
    top = s == s.max(1, keepdims=True)
    return float(1 - ((top & t).sum(1) / top.sum(1)).mean())


def coverage_error(scores: ArrayLike, targets: ArrayLike) -> float:
    """How many labels, from the top, hold all of a tile's own; averaged over tiles, in [0, K].

    Arguments and errors as `label_ranking_average_precision`'s. Ties count in full, a tile without labels as
    0, both as in scikit-learn.
    Source: Tsoumakas, Katakis & Vlahavas 2010, "Mining Multi-label Data" (there less 1).
    """
    s, t = checked(scores, targets)
    lowest = np.where(t, s, np.inf).min(1, keepdims=True)
    return float((s >= lowest).sum(1).mean())
