"""The linear probe trained to convergence: L2-regularised logistic regression, its strength chosen on validation.

Features (N,D) and targets (N,K) in; one linear layer out. NumPy and SciPy's L-BFGS. It has no epochs and no learning
rate, so it tells what a linear layer can read from features however the paper's probe happens to be trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr.evaluation import metrics

# λ of mean cross-entropy + λ/2 |w|² for each label, on standardised features; scikit-learn's C is 1 / (λ N)
STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
TOLERANCE = 1e-5  # of the gradient, in the coordinates of `fit`
PROGRESS = 1e-9  # of the loss between iterations, below which float32 has no more to give
ITERATIONS = 500  # at most, for each strength
THREADED = 10_000_000  # values of a feature matrix, from which on its products gain from BLAS threads
PATIENCE = 2  # strengths in a row without a better validation mAP, after which weaker ones are not tried

Floats = npt.NDArray[np.floating[Any]]
Targets = npt.NDArray[np.uint8]
Split = tuple[Floats, Targets]  # features (N,D) and targets (N,K)


@dataclass(frozen=True)
class Best:
    """The linear layer with the best validation mAP."""

    strength: float
    val_mAP: float  # noqa: N815 - the field's spelling
    weight: Floats  # (K,D)
    bias: Floats  # (K,)

    def scores(self, x: Floats) -> Floats:
        """Logits (N,K) of features (N,D)."""
        return x @ self.weight.T + self.bias


def standardize(train: Floats, *others: Floats) -> list[Floats]:
    """Features (N,D) of each split, minus the mean of `train` and divided by its deviation; a constant becomes 0."""
    mean = train.mean(0, dtype=np.float64).astype(train.dtype)
    parts = [x - mean for x in (train, *others)]
    deviation = np.sqrt(np.einsum("nd,nd->d", parts[0], parts[0], dtype=np.float64) / len(train))
    scale = np.where(deviation > 1e-6 * deviation.max(), deviation, np.inf).astype(train.dtype)
    for part in parts:
        np.divide(part, scale, out=part)
    return parts


def best(train: Split, val: Split) -> Best:
    """Fit `train` from strong to weak until validation mAP falls, and keep the best on `val`, the stronger on a tie."""
    chosen, since = Best(np.nan, -np.inf, *(np.zeros(0),) * 2), 0
    for strength, weight, bias in fit(*train, strengths=STRENGTHS):
        found = Best(strength, metrics.mean_average_precision(val[0] @ weight.T + bias, val[1]), weight, bias)
        if not chosen.weight.size or found.val_mAP > chosen.val_mAP:
            chosen, since = found, 0
        elif (since := since + 1) == PATIENCE:
            break
    return chosen


def fit(x: Floats, targets: Targets, *, strengths: Sequence[float]) -> Iterator[tuple[float, Floats, Floats]]:
    """Yield λ, weight (K,D) and bias (K,) at the minimum for each strength, strongest first; each starts at the last.

    The bias is not penalised. Features are turned to their principal axes, which changes neither loss nor penalty, and
    each axis is scaled to about the same curvature; L-BFGS then takes tens of iterations instead of hundreds.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    axes, spread = principal_axes(x)
    z, y = x @ axes, targets.astype(x.dtype)
    share = np.clip(y.mean(0, dtype=float), 0.5 / len(y), 1 - 0.5 / len(y))
    steepness = share * (1 - share)
    weight, bias = np.zeros((y.shape[1], z.shape[1])), np.log(share / (1 - share))
    for strength in sorted(strengths, reverse=True):
        scale = np.column_stack([1 / np.sqrt(np.outer(steepness, spread) + strength), 1 / np.sqrt(steepness)])

        def loss(u: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            w = u.reshape(scale.shape) * scale  # noqa: B023 - called within the iteration
            logits = z @ w[:, :-1].T.astype(z.dtype) + w[:, -1].astype(z.dtype)
            tail = np.exp(-np.abs(logits))
            total = np.sum(np.maximum(logits, 0) - logits * y + np.log1p(tail), dtype=float) / len(z)
            pull = np.where(logits >= 0, 1, tail) / (1 + tail) - y
            slope = np.column_stack([pull.T @ z, pull.sum(0)]).astype(float) / len(z)
            slope[:, :-1] += strength * w[:, :-1]  # noqa: B023
            return total + strength / 2 * np.square(w[:, :-1]).sum(), (slope * scale).ravel()  # noqa: B023

        start = (np.column_stack([weight, bias]) / scale).ravel()
        limits = {"maxiter": ITERATIONS, "gtol": TOLERANCE, "ftol": PROGRESS, "maxcor": 10}
        # L-BFGS's vector operations are up to ten times slower on OpenBLAS's threads.
        with threadpool_limits(1 if x.size < THREADED else None, "blas"):
            w = minimize(loss, start, jac=True, method="L-BFGS-B", options=limits).x.reshape(scale.shape) * scale
        weight, bias = w[:, :-1], w[:, -1]
        yield strength, (weight @ axes.T).astype(x.dtype), bias.astype(x.dtype)


def principal_axes(x: Floats) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Directions (D,R) that hold all of features `x` (N,D), as columns, and the mean square of `x` along each (R,)."""
    wide = x.shape[1] > len(x)
    gram = (x @ x.T if wide else x.T @ x).astype(float)
    square, axes = np.linalg.eigh(gram)
    kept = square > max(1e-6 * square[-1], 1e-300)
    square, axes = square[kept], axes[:, kept]
    if wide:
        axes = x.T @ axes / np.sqrt(square)
    return axes.astype(x.dtype), square / len(x)
