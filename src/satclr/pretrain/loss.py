"""Contrastive objectives: projections z (and labels) in, a scalar loss with gradients out. `objective` picks one.

Every loss here is one sum over pairs of rows, with its own weights W and with S = x xᵀ/τ, x = normalise(z):

    loss = Σᵢⱼ Wᵢⱼ (logΣ_{l≠i} exp Sᵢₗ − Sᵢⱼ)

Both loss and gradient are accumulated over blocks of rows, so that memory grows with M·D and not with M².
Matrix products are float32 or better whatever the dtype of z and whatever autocast asks for.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from satclr.params import Objective

Positives = Literal["any", "all", "jaccard"]
POSITIVES: dict[str, Positives] = {"supcon_any": "any", "supcon_all": "all", "jaccard": "jaccard"}
_BLOCK_ELEMENTS = 2**20  # of S at a time: 4 MiB in float32, the size of a cache


def objective(name: Objective, temperature: float, nt_xent_weight: float, targets: Tensor, z: Tensor) -> Tensor:
    """The loss that an arm asks for: w·NT-Xent + (1 - w)·the objective, w = nt_xent_weight.

    z: (2B,D), rows i and i+B the views of tile i; targets: (2B,K), the labels of its rows, which NT-Xent ignores.
    """
    if name == "nt_xent":
        return nt_xent(z, temperature)
    if name == "mulsupcon":
        own = mulsupcon(z, targets, temperature)
    else:
        own = supcon(z, targets, temperature, POSITIVES[name])
    w = nt_xent_weight
    return w * nt_xent(z, temperature) + (1 - w) * own if w else own


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent: each view must find its tile's other view among the 2B-1 others.

    z: (2B,D) unnormalised projections, rows i and i+B are the views of tile i; temperature > 0.
    Returns the mean over the 2B anchors, a scalar in float32 (float64 for float64 z).
    Raises ValueError for an odd number of rows.
    Source: SimCLR eq. 1, arXiv:2002.05709.
    """
    rows = len(z)
    if rows % 2:
        raise ValueError(f"z has {rows} rows; nt_xent needs both views of each tile: cat([z1, z2])")

    def weights(start: int, stop: int) -> Tensor:
        anchor = torch.arange(start, stop, device=z.device)
        partner = (anchor + rows // 2) % rows
        block = torch.zeros(stop - start, rows, dtype=_dtype(z), device=z.device)
        block.scatter_(1, partner[:, None], 1 / rows)
        return block

    return _pair_loss(z, weights, temperature)


def supcon(z: Tensor, targets: Tensor, temperature: float, positives: Positives) -> Tensor:
    """Supervised contrastive loss: each anchor must find the rows whose labels are like its own.

    z: (M,D) unnormalised projections; targets: (M,K) of 0 and 1, every view with its tile's labels;
    temperature > 0; positives of an anchor are the other rows that
      "any"      share a label with it,
      "all"      have the same set of labels,
      "jaccard"  share a label, weighted by |yᵢ∩yⱼ|/|yᵢ∪yⱼ| and normalised by the sum of the weights.
    Returns the mean, over the anchors that have a positive, of the (weighted) mean of -log p over their
    positives: a scalar in float32 (float64 for float64 z); 0, with a zero gradient, when no anchor has one.
    A row without labels is a negative only: nothing draws the two views of an unlabelled tile together.
    Source: Khosla et al. 2020, L_out, arXiv:2004.11362.
    """
    labels = targets.to(z.device).bool()
    labelled = labels.any(1)
    if positives == "all":
        _, group, sizes = torch.unique(labels, dim=0, return_inverse=True, return_counts=True)
        anchors = labelled & (sizes[group] > 1)

        def likeness(start: int, stop: int) -> Tensor:
            same: Tensor = (group[start:stop, None] == group) & labelled
            return same.to(_dtype(z))

    else:
        y = labels.to(_dtype(z))
        anchors = (labels & (labels.sum(0) > 1)).any(1)
        sizes = y.sum(1)

        def likeness(start: int, stop: int) -> Tensor:
            shared = y[start:stop] @ y.T
            if positives == "any":
                return shared.clamp_(max=1)
            union = (sizes[start:stop, None] + sizes).sub_(shared)
            return shared.div_(union.clamp_(min=1))

    count = anchors.sum().clamp(min=1)

    def weights(start: int, stop: int) -> Tensor:
        block = likeness(start, stop)
        block.diagonal(start).zero_()
        total = block.sum(1, keepdim=True)
        return block.div_(torch.where(total > 0, total * count, 1))

    return _pair_loss(z, weights, temperature)


def mulsupcon(z: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """MulSupCon: each label of an anchor is a supervised contrastive task of its own.

    z: (M,D) unnormalised projections; targets: (M,K) of 0 and 1, every view with its tile's labels; temperature > 0.
    Returns, for each label of each anchor, the mean of -log p over the other rows with that label, summed and divided
    by the number of ones in targets: a scalar in float32 (float64 for float64 z); 0, with a zero gradient, when no two
    rows share a label. Rows without labels are negatives only.
    Source: Zhang & Wu, "Multi-Label Supervised Contrastive Learning", AAAI 2024.
    """
    y = targets.to(z.device).bool().to(_dtype(z))
    others = (y.sum(0) - 1).clamp(min=1)
    per_label = y / (others * y.sum().clamp(min=1))

    def weights(start: int, stop: int) -> Tensor:
        block = per_label[start:stop] @ y.T
        block.diagonal(start).zero_()
        return block

    return _pair_loss(z, weights, temperature)


_Weights = Callable[[int, int], Tensor]


def _pair_loss(z: Tensor, weights: _Weights, temperature: float) -> Tensor:
    """Σᵢⱼ Wᵢⱼ (lseᵢ − Sᵢⱼ); weights(start, stop) gives rows of W with a zero diagonal, (stop-start, M)."""
    with torch.autocast(z.device.type, enabled=False):
        x = normalize(z.to(_dtype(z)), dim=1)
        loss: Tensor = _PairLoss.apply(x, weights, temperature)
        return loss


class _PairLoss(torch.autograd.Function):
    """The gradient is a by-product of the forward pass: S is computed once and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: _Weights, temperature: float) -> Tensor:
        rows = len(x)
        step = max(1, _BLOCK_ELEMENTS // rows)
        loss, grad = x.new_zeros(()), torch.zeros_like(x)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            S = (x[start:stop] / temperature) @ x.T
            S.diagonal(start).fill_(-math.inf)
            log_p = S.log_softmax(1)
            log_p.diagonal(start).zero_()  # W is 0 there, and 0 times -inf would be nan
            W = weights(start, stop)
            loss -= torch.dot(W.flatten(), log_p.flatten())
            row_weight = W.sum(1, keepdim=True)
            p = log_p.exp_()
            p.diagonal(start).zero_()
            rise = W.addcmul_(row_weight, p, value=-1)  # minus the derivative by S
            grad[start:stop].addmm_(rise, x, alpha=-1 / temperature)
            grad.addmm_(rise.T, x[start:stop], alpha=-1 / temperature)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None


def _dtype(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)
