"""Losses: projections z (and labels) in, a scalar with gradients out. `objectives` says which one an arm trains with.

Most are one sum over pairs of rows, with their own weights W and with S = x xᵀ/τ, x = normalise(z):

    loss = Σᵢⱼ Wᵢⱼ (logΣ_{l≠i} exp Sᵢₗ − Sᵢⱼ)

Both loss and gradient are accumulated over blocks of rows, so that memory grows with M·D and not with M².

z (M,D) are unnormalised projections, targets (M,K) of 0 and 1 their labels: every view has its tile's. temperature > 0.
A loss is a scalar in float32 (float64 for float64 z), and so are its matrix products, whatever autocast asks for. A row
without labels is a negative only: nothing draws the two views of an unlabelled tile together.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.nn.functional import normalize

Positives = Literal["any", "all", "jaccard", "multisupcon"]
POSITIVES: dict[str, Positives] = {  # by objective
    "supcon_any": "any", "supcon_all": "all", "jaccard": "jaccard", "multisupcon": "multisupcon",
}  # fmt: skip
MULTISUPCON_JACCARD = 0.3  # c of Zaigrajew & Zięba
_BLOCK_ELEMENTS = 2**20  # of S at a time: 4 MiB in float32, the size of a cache


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent: each view must find its tile's other view among the 2B-1 others.

    z: (2B,D), rows i and i+B are the views of tile i. Returns the mean over the 2B anchors.
    Source: SimCLR eq. 1, arXiv:2002.05709.
    """
    rows = len(z)

    def weights(start: int, stop: int) -> Tensor:
        partner = (torch.arange(start, stop, device=z.device) + rows // 2) % rows
        block = torch.zeros(stop - start, rows, dtype=_dtype(z), device=z.device)
        block.scatter_(1, partner[:, None], 1 / rows)
        return block

    return _pair_loss(z, weights, temperature)


def supcon(z: Tensor, targets: Tensor, temperature: float, positives: Positives) -> Tensor:
    """Supervised contrastive loss: each anchor must find the rows whose labels are like its own.

    z: (M,D); targets: (M,K); positives of an anchor are the other rows that
      "any"      share a label with it,
      "all"      have the same set of labels,
      "jaccard"  share a label, weighted by |yᵢ∩yⱼ|/|yᵢ∪yⱼ| and normalised by the sum of the weights;
      "multisupcon"  have a Jaccard similarity of at least 0.3, weighted by it and divided by their number.
    Returns the mean, over the anchors that have a positive, of the (weighted) mean of -log p over their positives;
    0, with a zero gradient, when no anchor has one.
    Source: Khosla et al. 2020, L_out, arXiv:2004.11362; MultiSupCon: Zaigrajew & Zięba 2022.
    """
    labels = targets.to(z.device).bool()
    labelled = labels.any(1)
    anchors = (labels & (labels.sum(0) > 1)).any(1)  # those that share a label with another row
    if positives == "all":
        _, group, rows = torch.unique(labels, dim=0, return_inverse=True, return_counts=True)
        anchors = labelled & (rows[group] > 1)
    y = labels.to(_dtype(z))
    sizes = y.sum(1)

    def likeness(start: int, stop: int) -> Tensor:
        if positives == "all":
            block: Tensor = ((group[start:stop, None] == group) & labelled).to(y.dtype)
        else:
            block = y[start:stop] @ y.T
            if positives == "any":
                block.clamp_(max=1)
            else:
                union = (sizes[start:stop, None] + sizes).sub_(block)
                block.div_(union.clamp_(min=1))
                if positives == "multisupcon":
                    block.mul_(block >= MULTISUPCON_JACCARD)
        block.diagonal(start).zero_()
        return block

    if positives == "multisupcon":
        with torch.autocast(z.device.type, enabled=False):
            anchors = torch.cat([likeness(*rows).any(1) for rows in _blocks(len(y))])
    count = anchors.sum().clamp(min=1)

    def weights(start: int, stop: int) -> Tensor:
        block = likeness(start, stop)
        total = (block.bool() if positives == "multisupcon" else block).sum(1, keepdim=True)
        return block.div_(torch.where(total > 0, total * count, 1))

    return _pair_loss(z, weights, temperature)


def mulsupcon(z: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """MulSupCon: each label of an anchor is a supervised contrastive task of its own.

    z: (M,D); targets: (M,K). Returns, for each label of each anchor, the mean of -log p over the other rows with that
    label, summed and divided by the number of ones in targets; 0, with a zero gradient, when no two rows share a label.
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


def mulsupcon_moco(q: Tensor, y: Tensor, keys: Tensor, key_targets: Tensor, temperature: float) -> Tensor:
    """MulSupCon against the keys of a momentum encoder, as its authors train it: no gradient goes to the keys.

    q: (B,D) with labels y (B,K); keys: (R,D) with labels (R,K), of this batch and of earlier ones. Returns, for each
    label of each row of q, the mean of -log p over the keys with that label, summed and divided by the number of ones
    in y.
    Source: Zhang & Wu, AAAI 2024; MoCo: He et al., arXiv:1911.05722.
    """
    with torch.autocast(q.device.type, enabled=False):
        y, others = y.to(_dtype(q)), key_targets.to(_dtype(q))
        W = y / (others.sum(0).clamp(min=1) * y.sum().clamp(min=1)) @ others.T
        S = normalize(q.to(y.dtype), dim=1) @ normalize(keys.detach().to(y.dtype), dim=1).T
        return -(W * (S / temperature).log_softmax(1)).sum()


def msc(z: Tensor, targets: Tensor, prototypes: Tensor, temperature: float, *, attract_only: bool = False) -> Tensor:
    """MSC: rows and one learnt prototype a label attract each other, label by label.

    z: (M,D); targets: (M,K); prototypes: (K,D), rows of their own with a single label each. A label of an anchor shares
    a weight of 1/|yᵢ| among the other rows j that have it, in proportion to |yᵢ∩yⱼ|/|yⱼ|. `attract_only` is the paper's
    regularised variant: no positive is pushed away, that is, the part of its gradient that would do so is removed.
    Returns the mean over the anchors that have a positive.
    Source: Audibert et al. 2024, arXiv:2412.00101 (with their exponent α = 1).
    """
    x = torch.cat([z.to(_dtype(z)), prototypes.to(_dtype(z))])
    labels = torch.cat([targets.to(z.device).bool(), torch.eye(len(prototypes), dtype=torch.bool, device=z.device)])
    y = labels.to(x.dtype)
    sizes = y.sum(1).clamp(min=1)
    count = (labels & (labels.sum(0) > 1)).any(1).sum().clamp(min=1)

    def weights(start: int, stop: int) -> Tensor:
        block = (y[start:stop] @ y.T).div_(sizes)
        block.diagonal(start).zero_()
        among = block @ y  # (stop-start, K): what the positives of each label sum to
        share = y[start:stop] / torch.where(among > 0, among, 1)
        return block.mul_(share @ y.T).div_(sizes[start:stop, None] * count)

    return _pair_loss(x, weights, temperature, attract_only)


def mulcon(embeddings: Tensor, logits: Tensor, targets: Tensor, temperature: float, contrast_weight: float) -> Tensor:
    """MulCon: binary cross-entropy of each label, and contrast between the embeddings of the labels that are there.

    embeddings: (M,K,D), one a label; logits: (M,K); targets: (M,K). Only the embeddings of labels that a tile has take
    part; those of one label are positives of each other. Returns the mean cross-entropy + contrast_weight · the
    contrast.
    Source: Dao et al. 2021, arXiv:2107.11626.
    """
    present = targets.bool()
    loss = F.binary_cross_entropy_with_logits(logits.to(_dtype(logits)), present.to(_dtype(logits)))
    if not contrast_weight:
        return loss
    label = torch.eye(targets.shape[1], device=targets.device).expand(len(targets), -1, -1)
    return loss + contrast_weight * supcon(embeddings[present], label[present], temperature, "any")


def vicreg(z: Tensor) -> Tensor:
    """VICReg: the views of a tile agree, every dimension varies, and no two dimensions vary together.

    z: (2B,D), rows i and i+B are the views of tile i; B > 1. It needs no negatives, hence no large batch. Returns
    25·invariance + 25·variance + covariance; invariance is a mean over dimensions too, and variance one over views, as
    in the authors' code.
    Source: Bardes et al. 2022, arXiv:2105.04906.
    """
    with torch.autocast(z.device.type, enabled=False):
        first, second = views = z.to(_dtype(z)).chunk(2)
        invariance = F.mse_loss(first, second)
        variance = covariance = invariance.new_zeros(())
        for view in views:
            centred = view - view.mean(0)
            variance = variance + F.relu(1 - (view.var(0) + 1e-4).sqrt()).mean() / 2
            together = centred.T @ centred / (len(view) - 1)
            off_diagonal = together - together.diagonal().diag()
            covariance = covariance + off_diagonal.square().sum() / view.shape[1]
        return 25 * invariance + 25 * variance + covariance


_Weights = Callable[[int, int], Tensor]


def _pair_loss(z: Tensor, weights: _Weights, temperature: float, attract_only: bool = False) -> Tensor:
    """Σᵢⱼ Wᵢⱼ (lseᵢ − Sᵢⱼ); weights(start, stop) gives rows of W with a zero diagonal, (stop-start, M).

    attract_only: − Σᵢⱼ max(0, wᵢpᵢⱼ − Wᵢⱼ) Sᵢⱼ over positives, wᵢ = ΣⱼWᵢⱼ, with the maximum taken as a constant. It
    cancels the derivative by Sᵢⱼ where that would push a positive away.
    """
    with torch.autocast(z.device.type, enabled=False):
        loss: Tensor = _PairLoss.apply(normalize(z.to(_dtype(z)), dim=1), weights, temperature, attract_only)
        return loss


class _PairLoss(torch.autograd.Function):
    """The gradient is a by-product of the forward pass: S is computed once and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: _Weights, temperature: float, attract_only: bool) -> Tensor:
        loss, grad = x.new_zeros(()), torch.zeros_like(x)
        for start, stop in _blocks(len(x)):
            S = (x[start:stop] / temperature) @ x.T
            S.diagonal(start).fill_(-math.inf)
            log_p = S.log_softmax(1)
            log_p.diagonal(start).zero_()  # W is 0 there, and 0 times -inf would be nan
            W = weights(start, stop)
            loss -= torch.dot(W.flatten(), log_p.flatten())
            row_weight = W.sum(1, keepdim=True)
            p = log_p.exp_()
            p.diagonal(start).zero_()
            positive = W > 0 if attract_only else None
            rise = W.addcmul_(row_weight, p, value=-1)  # minus the derivative by S
            if positive is not None:
                away = rise.clamp(max=0).mul_(positive)
                loss += torch.dot(away.flatten(), S.masked_fill_(~positive, 0).flatten())
                rise -= away
            grad[start:stop].addmm_(rise, x, alpha=-1 / temperature)
            grad.addmm_(rise.T, x[start:stop], alpha=-1 / temperature)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None, None


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose part of S has at most _BLOCK_ELEMENTS."""
    step = max(1, _BLOCK_ELEMENTS // max(1, rows))
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _dtype(z: Tensor) -> torch.dtype:
    return torch.promote_types(z.dtype, torch.float32)
