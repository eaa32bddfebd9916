"""Many linear probes for little more than the price of one: a stack trained on the same batches.

Features (N,D) and targets (N,K) in; C probes, one for each learning rate and weight decay, out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from satclr import randomness
from satclr.evaluation import metrics

Config = tuple[float, float]  # learning rate, weight decay


@dataclass(frozen=True)
class Best:
    """The probe that validates best, and how it was set."""

    learning_rate: float
    weight_decay: float
    val_mAP: float  # noqa: N815 - mAP is the field's spelling
    weight: Tensor  # (K,D)
    bias: Tensor  # (K,)

    @torch.inference_mode()
    def scores(self, x: Tensor) -> npt.NDArray[np.float64]:
        """Logits (N,K) of features (N,D)."""
        return F.linear(x, self.weight, self.bias).double().cpu().numpy()


def standardize(features: Tensor, train: Tensor) -> Tensor:
    """`features` (N,D) less the mean and over the deviation of `train` (M,D); a constant feature becomes 0."""
    deviation = train.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)
    return (features - train.mean(0)) / scale


def best(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    configs: Sequence[Config],
    steps: int,
    batch_size: int,
    seed: int,
) -> Best:
    """Train a stack on `train`, features (N,D) and targets (N,K), and keep the best by macro mAP on `val`.

    A tie goes to the earlier of `configs`.
    """
    weight, bias = fit(*train, configs=configs, steps=steps, batch_size=batch_size, seed=seed)
    x, targets = val
    with torch.inference_mode():
        logits = F.linear(x, weight.flatten(0, 1), bias.flatten())  # (M,C·K)
    ap = metrics.average_precision(logits.cpu().numpy(), targets.repeat(1, len(configs)).cpu().numpy())
    mean = metrics.nan_mean(ap.reshape(len(configs), -1))
    chosen = int(np.nanargmax(mean)) if np.isfinite(mean).any() else 0
    return Best(*configs[chosen], float(mean[chosen]), weight[chosen], bias[chosen])


def fit(
    x: Tensor, targets: Tensor, *, configs: Sequence[Config], steps: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Train C linear layers on features `x` (N,D) and targets (N,K): weights (C,K,D) and biases (C,K).

    Binary cross-entropy, AdamW (no decay of the bias), a cosine from each learning rate to 0, from zero
    weights; all C see the same batches, drawn by `seed`, so each is what it would be alone. Few tiles are
    passed over more often, so that `steps` is the same whatever N is.
    """
    (count, labels), width = targets.shape, x.shape[1]
    rates, decays = (torch.tensor(v, device=x.device).repeat_interleave(labels) for v in zip(*configs, strict=True))
    # Adam's step does not change with the scale of its parameter, so one fused optimizer serves every rate:
    # it moves `unit` by 1 where a probe moves by its own rate, and weights are rate x unit.
    unit = torch.zeros(len(configs) * labels, width, device=x.device)
    offset = torch.zeros(len(configs) * labels, device=x.device)
    optimizer = torch.optim.Adam([unit, offset], lr=1.0, fused=True)
    y = targets.to(x.dtype)
    per_epoch = math.ceil(count / batch_size)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = randomness.permutation(count, seed, "sweep order", epoch).to(x.device)
        rows = order[place * batch_size : (place + 1) * batch_size]
        batch, pull = x[rows], torch.addmm(offset, x[rows], unit.T).mul_(rates).sigmoid_()
        pull.view(len(rows), len(configs), labels).sub_(y[rows][:, None]).div_(len(rows) * labels)
        unit.grad, offset.grad = pull.T @ batch, pull.sum(0)  # of the mean cross-entropy of each probe
        pace = (1 + math.cos(math.pi * step / steps)) / 2
        if decays.any():
            unit.mul_((1 - pace * rates * decays)[:, None])
        optimizer.param_groups[0]["lr"] = pace
        optimizer.step()
    weight, bias = unit * rates[:, None], offset * rates
    return weight.view(len(configs), labels, width), bias.view(len(configs), labels)
