"""The one check of what every metric takes: scores (N,K) and targets (N,K)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def checked(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Bools]:
    """Scores as float64 and targets as bool, both (N,K); ValueError says which value is wrong and where."""
    s = np.asarray(scores, dtype=np.float64)
    t = np.asarray(targets)
    if s.ndim != 2 or s.shape != t.shape or not s.size:
        raise ValueError(f"scores have shape {s.shape} and targets {t.shape}; both must be (tiles, labels), not empty")
    if not np.isfinite(s).all():
        tile, label = np.argwhere(~np.isfinite(s))[0]
        raise ValueError(f"scores[{tile}, {label}] is {s[tile, label]}; scores must be finite")
    positive = t.astype(bool)
    if t.dtype != np.bool_ and (positive != t).any():
        tile, label = np.argwhere(positive != t)[0]
        raise ValueError(f"targets[{tile}, {label}] is {t[tile, label]}; targets are 0 or 1")
    return s, positive
