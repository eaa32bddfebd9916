"""Many linear probes for little more than the price of one: a stack trained on the same batches.

Features (N,D) and targets (N,K) in; C probes, one for each learning rate and weight decay, out. NumPy in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import randomness
from satclr.evaluation import metrics

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WEIGHT_DECAYS = (0.0, 1.0)
GRID = tuple(product(LEARNING_RATES, WEIGHT_DECAYS))
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's
BLOCK = 2**17  # parameters that Adam updates at a time: they stay in the cache, which halves the time

Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.uint8]
Split = tuple[Floats, Targets]  # features (N,D) and targets (N,K)
Config = tuple[float, float]  # learning rate, weight decay


@dataclass(frozen=True)
class Best:
    """The probe with the best validation mAP, and its config."""

    learning_rate: float
    weight_decay: float
    val_mAP: float  # noqa: N815 - the field's spelling
    weight: Floats  # (K,D)
    bias: Floats  # (K,)

    def scores(self, x: Floats) -> Floats:
        """Logits (N,K) of features (N,D)."""
        return x @ self.weight.T + self.bias


def standardize(train: npt.NDArray[Any], *others: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Features (N,D) of each split, minus the mean of `train` and divided by its deviation; a constant becomes 0."""
    mean = train.mean(0, dtype=np.float64).astype(train.dtype)
    parts = [x - mean for x in (train, *others)]
    deviation = np.sqrt(np.einsum("nd,nd->d", parts[0], parts[0], dtype=np.float64) / len(train))
    scale = np.where(deviation > 1e-6 * deviation.max(), deviation, np.inf).astype(train.dtype)
    for part in parts:
        np.divide(part, scale, out=part)
    return parts


def best(train: Split, val: Split, *, steps: int, batch_size: int, seed: int, configs: Sequence[Config] = GRID) -> Best:
    """Train a stack on `train` and keep the best by macro mAP on `val`, the earlier of `configs` on a tie."""
    weight, bias = fit(*train, configs=configs, steps=steps, batch_size=batch_size, seed=seed)
    x, targets = val
    logits = x @ weight.reshape(-1, x.shape[1]).T + bias.ravel()  # (M,C·K)
    ap = metrics.average_precision(logits, np.tile(targets, len(configs)))
    mean = metrics.nan_mean(ap.reshape(len(configs), -1))
    chosen = int(np.nanargmax(mean)) if np.isfinite(mean).any() else 0
    return Best(*configs[chosen], float(mean[chosen]), weight[chosen], bias[chosen])


def fit(
    x: Floats, targets: Targets, *, configs: Sequence[Config], steps: int, batch_size: int, seed: int
) -> tuple[Floats, Floats]:
    """Train C linear layers on features `x` (N,D) and targets (N,K): weights (C,K,D) and biases (C,K).

    Binary cross-entropy, AdamW (no decay of the bias), a cosine from each learning rate to 0, from zero
    weights. All C see the same batches, drawn by `seed`, so each is what it would be alone. `steps` is the same
    whatever N is: few tiles are repeated more often.
    """
    (count, labels), width = targets.shape, x.shape[1]
    rates, decays = (np.repeat(np.asarray(v, np.float32), labels) for v in zip(*configs, strict=True))
    # Adam's step does not depend on the scale of its parameter, so one optimizer serves every rate: it moves
    # `unit` by 1 where a probe moves by its own rate, and the weights are rate x unit.
    unit = _Adam(len(configs) * labels, width)
    offset = _Adam(len(configs) * labels)
    per_epoch = math.ceil(count / batch_size)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = randomness.rng(seed, "sweep order", epoch).permutation(count)
        rows = order[place * batch_size : (place + 1) * batch_size]
        batch = x[rows]
        pull = _sigmoid((batch @ unit.values.T + offset.values) * rates)
        pull -= np.tile(targets[rows], len(configs))
        pull /= len(rows) * labels  # the gradient of each probe's mean cross-entropy by its logits
        pace = (1 + math.cos(math.pi * step / steps)) / 2
        if decays.any():
            unit.values *= (1 - np.float32(pace) * rates * decays)[:, None]
        unit.step(pull.T @ batch, pace)
        offset.step(pull.sum(0), pace)
    weight, bias = unit.values * rates[:, None], offset.values * rates
    return weight.reshape(len(configs), labels, width), bias.reshape(len(configs), labels)


class _Adam:
    """Parameters that start at zero, and Adam's moments of them (arXiv:1412.6980, algorithm 1), updated in place."""

    def __init__(self, *shape: int) -> None:
        self.values, self._mean, self._square = (np.zeros(shape, np.float32) for _ in range(3))
        self._steps = 0

    def step(self, gradient: Floats, rate: float) -> None:
        """Update the values; `gradient` is overwritten. The moments are kept without their factors 1 - β."""
        self._steps += 1
        root = math.sqrt((1 - BETA2) / (1 - BETA2**self._steps))
        factor = rate * (1 - BETA1) / (1 - BETA1**self._steps) / root
        arrays = [a.reshape(-1) for a in (self.values, self._mean, self._square, gradient)]
        for start in range(0, gradient.size, BLOCK):
            values, mean, square, g = (a[start : start + BLOCK] for a in arrays)
            mean *= BETA1
            mean += g
            square *= BETA2
            square += np.square(g, out=g)
            np.sqrt(square, out=g)
            g += EPSILON / root
            np.divide(mean, g, out=g)
            g *= factor
            values -= g


def _sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) in place."""
    np.minimum(np.negative(x, out=x), 80, out=x)  # exp(89) overflows in float32
    np.exp(x, out=x)
    x += 1
    return np.reciprocal(x, out=x)
